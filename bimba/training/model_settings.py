"""The node ``model`` of the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bimba.types import BimbaError

CHECKPOINTING = (False, True, "reentrant")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelSettings:
    """The node ``model``.

    Attributes:
        base: the checkpoint a training starts from unless ``checkpoint=`` names another one; None: random weights.
        tokenizer: whose tokenizer a model with random weights gets.
        dtype: of the frozen weights.
        gradient_checkpointing: trade time for memory: layers are computed again in the backward pass. "reentrant" is
            torch's older way, which the original uses: no gradient gets through a layer whose input needs none.
        config: keyword arguments of ``BimbaConfig``, without the compressor. None of them: as the checkpoint says, or
            ``BimbaConfig``'s default where there is none.
        compressor: the node ``model.compressor``.
        tuning, lora, frozen: see ``bimba.training.trainable``.
        compile: the layers of compressor and language model by torch.compile.
    """

    base: str | None
    tokenizer: str
    dtype: str
    gradient_checkpointing: bool | str
    config: dict[str, Any]
    compressor: dict[str, Any] | None
    tuning: str
    lora: dict[str, Any] | None
    compile: bool = False
    frozen: Sequence[str] = ()

    @classmethod
    def from_node(cls, node: Mapping[str, Any]) -> ModelSettings:
        """Reads the node; a key that nobody reads, or a missing one, is an error."""
        expected = set(cls.__dataclass_fields__)
        unknown, missing = sorted(set(node) - expected), sorted(expected - set(node))
        if unknown or missing:
            raise BimbaError(
                f"The configuration node model has unknown keys ({', '.join(unknown) or 'none'}) or lacks some "
                f"({', '.join(missing) or 'none'}); expected {', '.join(sorted(expected))}."
            )
        if node["dtype"] not in DTYPES:
            raise BimbaError(f"model.dtype is {node['dtype']!r}; expected one of {', '.join(DTYPES)}.")
        if node["gradient_checkpointing"] not in CHECKPOINTING:
            raise BimbaError(
                f"model.gradient_checkpointing is {node['gradient_checkpointing']!r}; expected true, false, reentrant."
            )
        return cls(**node)

    @property
    def trains_vision_tower(self) -> bool:
        return self.tuning == "full" or bool(self.lora and self.lora.get("vision_tower"))

    @property
    def reduction(self) -> tuple[int, int] | None:
        """(frames, rows) if the compressor says so, which then counts instead of ``temporal_pooling``."""
        from bimba.model.compressor import reduction_of

        return reduction_of(self.compressor)

    @property
    def cuts_vision_tower_off(self) -> bool:
        """Whether no gradient reaches the vision tower: its first layer has a frozen input, and so on."""
        return self.gradient_checkpointing == "reentrant" and self.tuning == "lora" and self.trains_vision_tower
