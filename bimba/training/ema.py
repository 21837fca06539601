"""A running mean of the trained weights, which takes their place in validation and in ``checkpoint/``.

Lightning has one too, but it copies the whole module, frozen weights included, and cannot do that once the weights are
dealt out over processes. Here each process averages its own parts of what is trained, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor

from bimba.training.parallel import local, part_like, whole
from bimba.types import BimbaError


class Ema(L.Callback):
    """After each optimizer step, mean = decay * mean + (1 - decay) * weight; steps that were skipped count too.

    Args:
        decay: how much of the mean stays at each step, 0 to 1. Early on less does, (1 + steps) / (10 + steps), so that
            where training began is soon forgotten.
    """

    def __init__(self, decay: float = 0.999):
        if not 0.0 <= decay < 1.0:
            raise BimbaError(f"callbacks.ema.decay is {decay}; expected a number from 0 to just below 1.")
        self.decay = decay
        self.steps = 0
        self._mean: dict[str, Tensor] = {}
        self._in_place = False  # the mean is in the model, and _mean has the weights
        self._loaded: dict[str, Tensor] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(pl_module)

    def _begin(self, pl_module: L.LightningModule) -> None:
        self._mean = {name: local(p.detach()).clone() for name, p in self._trained(pl_module).items()}
        if self._loaded is not None:
            for name, parameter in self._trained(pl_module).items():
                self._mean[name].copy_(part_like(self._loaded[name], parameter.detach()))
            self._loaded = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.catch_up(trainer, pl_module)

    def catch_up(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the last step in, if it is not yet: what comes earlier in the list of callbacks may save before."""
        if not self._mean:
            self._begin(pl_module)  # a run that had no step left to do
        if trainer.global_step == self.steps:
            return  # one of several batches of a step
        self.steps = trainer.global_step
        weight = 1.0 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for name, parameter in self._trained(pl_module).items():
                self._mean[name].lerp_(local(parameter.detach()), weight)

    @contextmanager
    def applied(self, pl_module: L.LightningModule) -> Iterator[None]:
        """The mean in the place of the weights, where it may be already."""
        if self._in_place:
            yield
            return
        self._swap(pl_module)
        try:
            yield
        finally:
            self._swap(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._mean:
            self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._in_place:
            self._swap(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._in_place:  # it came up during validation; who saves now finds the weights where they belong
            self._swap(pl_module)

    def _swap(self, pl_module: L.LightningModule) -> None:
        with torch.no_grad():
            for name, parameter in self._trained(pl_module).items():
                weight, mean = local(parameter.detach()), self._mean[name]
                kept = weight.clone()
                weight.copy_(mean)
                mean.copy_(kept)
        self._in_place = not self._in_place

    def _trained(self, pl_module: L.LightningModule) -> dict[str, Any]:
        return {name: p for name, p in pl_module.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Every process comes here, so that the means can be put together."""
        with self.applied(pl_module):
            means = {name: whole(p).cpu().clone() for name, p in self._trained(pl_module).items()}
        if trainer.is_global_zero:
            checkpoint["ema"] = {"steps": self.steps, "mean": means}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if "ema" in checkpoint:
            self.steps, self._loaded = checkpoint["ema"]["steps"], checkpoint["ema"]["mean"]


@contextmanager
def averaged(trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[None]:
    """The mean of the run's ``Ema`` in the place of the weights, if it has one."""
    callback = next((c for c in trainer.callbacks if isinstance(c, Ema)), None)  # type: ignore[attr-defined]
    if callback is None:
        yield
        return
    callback.catch_up(trainer, pl_module)
    with callback.applied(pl_module):
        yield
