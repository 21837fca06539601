"""The folder ``checkpoint/`` of a sharded model: each weight is put together, merged, written and let go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

from torch import Tensor

from bimba.checkpoint import write_pretrained
from bimba.model.adapters import merged_tensors
from bimba.training.parallel import ShardedStrategy, whole
from bimba.types import BimbaError

FILE_BYTES = 2 * 10**9  # what the first process holds in memory at a time


@dataclass
class Gathered:
    """A weight that is put together from all processes when it is read, which all of them must do.

    Attributes:
        tensor: the merged weight, in parts.
        shape: of the whole.
        file: which file it goes to.
        is_read: whether this process has taken part already.
    """

    tensor: Callable[[], Tensor]
    shape: tuple[int, ...]
    file: str
    is_read: bool = False

    def __getitem__(self, all_of_it: EllipsisType) -> Tensor:
        self.is_read = True
        return whole(self.tensor()).cpu()


def save_sharded(model: Any, processor: Any, folder: Path, strategy: ShardedStrategy) -> None:
    """As ``bimba.checkpoint.save_pretrained``; every process must call it, and the first one writes.

    Raises:
        BimbaError: the first process could not write; on all of them.
    """
    tensors = _gathered(model)
    failure: BimbaError | None = None
    if strategy.is_global_zero:
        try:
            write_pretrained(model, processor, tensors, folder)
        except BimbaError as error:
            failure = error
    for stored in tensors.values():
        if not stored.is_read:  # on the other processes, all; on the first, what it had no room for: they wait for it
            stored[...]
    message = strategy.broadcast(str(failure) if failure is not None else None)
    if message is not None:
        raise BimbaError(message) from failure


def _gathered(model: Any) -> dict[str, Gathered]:
    """All weights in the order in which they are written, in files of ``FILE_BYTES``."""
    parts = {name.replace(".base_layer.", "."): part for name, part in model.state_dict().items()}
    merged = merged_tensors(model)
    if model.config.text_config.tie_word_embeddings:
        del merged["language_model.lm_head.weight"]
    tensors: dict[str, Gathered] = {}
    num_bytes = 0
    for name, tensor in merged.items():
        tensors[name] = Gathered(tensor, tuple(parts[name].shape), f"{num_bytes // FILE_BYTES:05d}.safetensors")
        num_bytes += parts[name].numel() * parts[name].element_size()
    return tensors
