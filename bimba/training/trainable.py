"""Which weights of steps [3] to [5] are trained.

==========================  ==============================  ========
part                        ``tuning: lora``                ``full``
==========================  ==============================  ========
vision_tower                frozen                          trained
vision_lora (inside it)     trained, if lora.vision_tower   absent
projector                   trained                         trained
image_newline               frozen                          trained
compressor                  trained                         trained
language_model              frozen                          trained
lora (inside it)            trained                         absent
==========================  ==============================  ========

``lora`` is the recipe of the paper at every size; ``full`` is how the tiny base itself was made. ``model.frozen`` names
parts that stay as they are all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bimba.types import BimbaError

log = logging.getLogger(__name__)

PARTS = ("vision_tower", "vision_lora", "projector", "image_newline", "compressor", "language_model", "lora")
TUNINGS = ("lora", "full")

# SigLIP's last norm is in every checkpoint, but the patch features are taken before it.
UNREAD = ("vision_tower.post_layernorm.",)


@dataclass(frozen=True)
class LoraSettings:
    """The low-rank adapters; the update is scaled by ``alpha / r``.

    Attributes:
        r: rank.
        alpha: scale.
        dropout: share of an adapter's inputs that is dropped in training.
        target_modules: names of the linear layers that get an adapter, or one regular expression over their full names.
        vision_tower: whether the layers of these names in the vision tower get one too, besides the language model's.
    """

    r: int
    alpha: int
    dropout: float
    target_modules: str | list[str]
    vision_tower: bool = False


def part_of(parameter_name: str) -> str:
    """The part (one of ``PARTS``) a parameter of the model belongs to.

    Raises:
        BimbaError: the parameter belongs to no known part, so nobody decided whether it is trained.
    """
    part = parameter_name.split(".", 1)[0]
    if ".lora_" in parameter_name:
        return "vision_lora" if part == "vision_tower" else "lora"
    if part not in PARTS:
        raise BimbaError(f"Parameter {parameter_name!r} belongs to none of {', '.join(PARTS)}; add its part to PARTS.")
    return part


def set_trainable(
    model: nn.Module,
    tuning: str,
    lora: Mapping[str, Any] | None,
    before_casting: Callable[[nn.Module], None] = lambda model: None,
    frozen: Collection[str] = (),
) -> None:
    """Freezes and frees the parameters of ``model``, adds the adapters, keeps everything trained in float32.

    Args:
        model: with the attributes ``vision_tower``, ``projector``, ``compressor`` and ``language_model``.
        tuning: "lora" or "full".
        lora: the keys of ``LoraSettings``; only read when ``tuning`` is "lora".
        before_casting: what else is to be done to the model, adapters already in it.
        frozen: parts (of ``PARTS``) that are not trained although ``tuning`` would.

    Raises:
        BimbaError: unknown tuning or part, missing or unknown LoRA keys, or no layer matches.
    """
    if tuning not in TUNINGS:
        raise BimbaError(f"model.tuning is {tuning!r}; expected one of {', '.join(TUNINGS)}.")
    if unknown := sorted(set(frozen) - set(PARTS)):
        raise BimbaError(f"model.frozen has {', '.join(unknown)}; expected some of {', '.join(PARTS)}.")
    if tuning == "lora":
        settings = _lora_settings(lora)
        for part in ("language_model", "vision_tower") if settings.vision_tower else ("language_model",):
            add_lora(model.get_submodule(part), settings, part)
    before_casting(model)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        chosen = tuning == "full" or part in ("vision_lora", "projector", "compressor", "lora")
        chosen = chosen and part not in frozen
        parameter.requires_grad = chosen and not name.startswith(UNREAD)
        if parameter.requires_grad:
            # A half-precision weight cannot hold an update a thousand times smaller than itself.
            parameter.data = parameter.data.float()


def add_lora(module: nn.Module, settings: LoraSettings, part: str) -> None:
    """Puts adapters into a part of the model in place: it stays the class it was, so ``generate`` works as before."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
    )
    try:
        inject_adapter_in_model(config, module)
    except ValueError as error:
        raise BimbaError(
            f"model.lora.target_modules={settings.target_modules!r} does not fit the {part}: {error} "
            "Name its linear layers, such as [q_proj, v_proj]."
        ) from error


def _lora_settings(lora: Mapping[str, Any] | None) -> LoraSettings:
    if lora is None:
        raise BimbaError("model.tuning is 'lora' but model.lora is null; give r, alpha, dropout and target_modules.")
    values = dict(lora)
    if not isinstance(values.get("target_modules", ""), str):
        values["target_modules"] = list(values["target_modules"])
    try:
        return LoraSettings(**values)
    except TypeError as error:
        expected = ", ".join(LoraSettings.__dataclass_fields__)
        raise BimbaError(f"model.lora has the keys {', '.join(map(str, lora))}; expected {expected}.") from error


@dataclass(frozen=True)
class PartCount:
    """How many parameters a part of the model has, and how many of them are trained."""

    part: str
    total: int
    trained: int


def count_parts(named_parameters: Iterable[tuple[str, torch.Tensor]]) -> list[PartCount]:
    """One row per part of the model that has parameters, in the order of the data."""
    totals = dict.fromkeys(PARTS, 0)
    trained = dict.fromkeys(PARTS, 0)
    for name, parameter in named_parameters:
        part = part_of(name)
        totals[part] += parameter.numel()
        trained[part] += parameter.numel() if parameter.requires_grad else 0
    return [PartCount(part, totals[part], trained[part]) for part in PARTS if totals[part]]


def log_parts(model: nn.Module) -> None:
    """Logs the table of what is trained."""
    counts = count_parts(model.named_parameters())
    counts.append(PartCount("total", sum(c.total for c in counts), sum(c.trained for c in counts)))
    rows = [f"{c.part:<16}{c.total:>16,}{c.trained:>16,}" for c in counts]
    log.info("\n".join(["What is trained:", f"{'part':<16}{'parameters':>16}{'trained':>16}", *rows]))
