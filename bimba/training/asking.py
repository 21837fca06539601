"""Asking the model something in the middle of training, on one rank or on many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch.distributed.fsdp import FSDPModule


def is_sharded(pl_module: L.LightningModule) -> bool:
    """Whether no rank can run the model without the others."""
    return any(isinstance(module, FSDPModule) for module in pl_module.modules())


@contextmanager
def asking(trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[Any]:
    """The model as it answers: in evaluation mode, without gradients, in the trainer's precision; then all as it was.

    Of a sharded model, every rank has to ask, and equally often.
    """
    was_training = {module: module.training for module in pl_module.modules()}
    root = pl_module if isinstance(pl_module, FSDPModule) else None
    pl_module.eval()
    if root is not None:
        root.unshard()  # its layers look after themselves; what is in none of them, embeddings and head, does not
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            yield pl_module.model
    finally:
        if root is not None:
            root.reshard()
        for module, mode in was_training.items():
            module.training = mode
