"""LoRA adapters of checkpoints: folded into the weights they adapt as these are read, or kept live in the model.

A merged weight is W + alpha / r · B A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from bimba.checkpoint.errors import FETCH_AGAIN
from bimba.checkpoint.tensors import Stored, listing, read_json
from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.types import BimbaError

CONFIG = "adapter_config.json"
_ROWS = 512
FACTORS = (".lora_A.weight", ".lora_B.weight")

# Keys of adapter_config.json that make a merged weight something else than W + alpha / r · B A, and their plain values.
_PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "use_rslora": (False,),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
}


@dataclass(frozen=True)
class Merged:
    """A weight with its adapter folded in, once it is read; float32 in between, as few bits are lost as can be."""

    weight: Stored
    lora_A: Stored  # (r, in)
    lora_B: Stored  # (out, r)
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def file(self) -> str:
        return self.weight.file

    def __getitem__(self, all_of_it: EllipsisType) -> Tensor:
        weight, lora_A, lora_B = self.weight[...], self.lora_A[...].float(), self.lora_B[...].float()
        merged = torch.empty_like(weight)
        for start in range(0, len(weight), _ROWS):  # of a whole layer of a 7B model, a float32 copy takes 0.3 GB
            rows = slice(start, start + _ROWS)
            merged[rows] = (lora_B[rows] @ lora_A).mul_(self.scaling).add_(weight[rows])
        return merged


@dataclass(frozen=True)
class Adapter:
    """The factors of an adapter, by our name of the layer they adapt.

    Attributes:
        settings: the folder's ``adapter_config.json``.
        factors: layer -> (A (r, in), B (out, r)).
    """

    settings: dict[str, Any]
    factors: dict[str, tuple[Stored, Stored]]

    @property
    def scaling(self) -> float:
        return float(self.settings["lora_alpha"]) / int(self.settings["r"])

    def merge(self, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
        """``tensors`` with every adapted weight replaced by its merged one, which is computed when it is read."""
        self._check(tensors)
        merged: dict[str, Stored] = {
            f"{layer}.weight": Merged(tensors[f"{layer}.weight"], *factors, self.scaling)
            for layer, factors in self.factors.items()
        }
        return {**tensors, **merged}

    def inject(self, model: BimbaForConditionalGeneration) -> None:
        """Puts the adapter into ``model`` as live peft layers, apart from the weights; it can be trained on.

        It is then an adapter by transformers' own account: ``disable_adapters``, ``enable_adapters``, ``set_adapter``
        and ``active_adapters`` work; its name is "default".
        """
        from peft import LoraConfig

        config = LoraConfig(
            r=self.settings["r"],
            lora_alpha=self.settings["lora_alpha"],
            lora_dropout=self.settings.get("lora_dropout", 0.0),
            target_modules=sorted(self.factors),
        )
        model.add_adapter(config)
        with torch.no_grad():
            for name, (lora_A, lora_B) in self.factors.items():
                layer: Any = model.get_submodule(name)
                layer.lora_A["default"].weight.copy_(lora_A[...])
                layer.lora_B["default"].weight.copy_(lora_B[...])

    def _check(self, tensors: Mapping[str, Stored]) -> None:
        """Raises a BimbaError unless every factor fits a weight."""
        wrong = []
        rank = self.settings["r"]
        for layer, (lora_A, lora_B) in self.factors.items():
            weight = tensors.get(f"{layer}.weight")
            product = (lora_B.shape[0], lora_A.shape[1])
            if weight is None:
                wrong.append(f"{layer} is no layer of the base")
            elif weight.shape != product:
                wrong.append(f"{layer} is {weight.shape} in the base, {product} in the adapter")
            elif (lora_A.shape[0], lora_B.shape[1]) != (rank, rank):
                wrong.append(f"{layer} has factors of rank {lora_A.shape[0]} and {lora_B.shape[1]}, r is {rank}")
        if wrong:
            raise BimbaError(
                f"The adapter does not fit this base and its {CONFIG}: {listing(wrong)}. Give the base that {CONFIG} "
                "names, or copy the adapter again."
            )


def read_settings(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a plain LoRA adapter.

    Raises:
        BimbaError: another kind of adapter, or rank and scale are missing.
    """
    settings = read_json(folder / CONFIG)
    for key, accepted in _PLAIN.items():
        if settings.get(key, accepted[0]) not in accepted:
            raise BimbaError(
                f"{folder / CONFIG} has {key}={settings[key]!r}; only plain LoRA adapters can be loaded "
                f"({key}={accepted[0]!r}). Merge it with peft first."
            )
    rank: Any = settings.get("r")
    alpha: Any = settings.get("lora_alpha")
    if type(rank) is not int or type(alpha) not in (int, float) or min(rank, alpha) <= 0:
        raise BimbaError(
            f"{folder / CONFIG} has r={rank!r} and lora_alpha={alpha!r}; expected a whole number and a number, both "
            "positive. Copy the adapter again."
        )
    return settings


def pair_factors(folder: Path, tensors: Mapping[str, Stored]) -> dict[str, tuple[Stored, Stored]]:
    """Layer -> (A, B), from tensors named ``<layer>.lora_A.weight`` and ``<layer>.lora_B.weight``.

    Raises:
        BimbaError: a factor without its other, or a tensor that is none.
    """
    if not tensors:
        raise BimbaError(f"The adapter in {folder} holds no LoRA factors. {FETCH_AGAIN}")
    layers = sorted({name.removesuffix(suffix) for name in tensors for suffix in FACTORS if name.endswith(suffix)})
    expected = {layer + suffix for layer in layers for suffix in FACTORS}
    if astray := sorted(expected ^ set(tensors)):
        raise BimbaError(
            f"The adapter in {folder} is not whole; missing, or no LoRA factor: {listing(astray)}. {FETCH_AGAIN}"
        )
    return {layer: (tensors[layer + FACTORS[0]], tensors[layer + FACTORS[1]]) for layer in layers}
