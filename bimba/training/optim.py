"""The optimizer: AdamW in groups, optionally Muon for the hidden matrices, and a schedule that ends with the run.

The cosine is the one LLaVA-Video and BIMBA were trained with (transformers' ``get_cosine_schedule_with_warmup``):
linear from 0 over ``ceil(warmup_ratio * steps)`` steps, so the very first step has rate 0 when there is a warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bimba.training.parallel import dealt, local, part_like, whole
from bimba.training.trainable import part_of
from bimba.types import BimbaError, is_count, is_number

SCHEDULES = ("cosine", "wsd", "constant")

# The parts that may have a rate and a decay of their own; adapters of the vision tower count as the vision tower.
OWN = ("compressor", "projector", "vision_tower", "lora", "language_model")

# Decay rates and skip weights of a scan: pulling them towards zero would change what the scan remembers.
SCAN_CONSTANTS = ("A_log", "A_b_log", "D", "D_b")


@dataclass(frozen=True)
class OptimizerSettings:
    """The node ``optimizer``.

    Attributes:
        lr: learning rate after warm-up.
        compressor_lr: the compressor's own rate; None means ``lr``.
        projector_lr: the projector's own rate; None means ``lr``.
        vision_tower_lr: the vision tower's own rate, be it trained itself or by adapters; None means ``lr``.
        lora_lr: the own rate of the language model's adapters; None means ``lr``.
        language_model_lr: the own rate of the language model itself, with ``tuning: full``; None means ``lr``.
        matrix_lr: with a number, hidden matrices are trained by Muon at this rate, and AdamW has only the rest. A small
            model trained from nothing learned to read options within 250 steps that way.
        weight_decay: for matrices only; never for biases, norms and the scan's constants.
        compressor_weight_decay, projector_weight_decay, vision_tower_weight_decay, lora_weight_decay,
            language_model_weight_decay: a part's own; None means ``weight_decay``.
        betas: AdamW's averaging.
        eps: AdamW's floor.
        warmup_ratio: share of all steps with a rising rate.
        schedule: after warm-up, "cosine" (to ``min_lr_ratio``), "wsd" (constant, then in a line to ``min_lr_ratio``) or
            "constant".
        min_lr_ratio: what is left of the rate at the end of the cosine, or of wsd.
        decay_ratio: share of all steps, the last ones, with a falling rate under "wsd".
        max_skipped_steps: a step whose loss or gradients are not numbers is skipped; so many in a row end the run.
    """

    lr: float
    compressor_lr: float | None = None
    projector_lr: float | None = None
    vision_tower_lr: float | None = None
    lora_lr: float | None = None
    language_model_lr: float | None = None
    matrix_lr: float | None = None
    weight_decay: float = 0.0
    compressor_weight_decay: float | None = None
    projector_weight_decay: float | None = None
    vision_tower_weight_decay: float | None = None
    lora_weight_decay: float | None = None
    language_model_weight_decay: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup_ratio: float = 0.03
    schedule: str = "cosine"
    min_lr_ratio: float = 0.0
    decay_ratio: float = 0.1
    max_skipped_steps: int = 3

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise BimbaError(f"optimizer.schedule is {self.schedule!r}; expected one of {', '.join(SCHEDULES)}.")
        may_be_none = {"matrix_lr", *(f"{part}_{kind}" for part in OWN for kind in ("lr", "weight_decay"))}
        for key in ("lr", "weight_decay", "eps", *sorted(may_be_none)):
            value: Any = getattr(self, key)
            if not (key in may_be_none if value is None else is_number(value) and value >= 0):
                raise BimbaError(f"optimizer.{key} is {value!r}; expected a number, 0 or more.")
        betas: Any = self.betas
        are_shares = isinstance(betas, Sequence) and all(is_number(beta) and 0.0 <= beta < 1.0 for beta in betas)
        if not are_shares or len(betas) != 2:
            raise BimbaError(f"optimizer.betas is {self.betas!r}; expected two numbers, each from 0 to just below 1.")
        for key in ("warmup_ratio", "min_lr_ratio", "decay_ratio"):
            value = getattr(self, key)
            if not is_number(value) or not 0.0 <= value <= 1.0:
                raise BimbaError(f"optimizer.{key} is {value!r}; expected a share between 0 and 1.")
        if self.schedule == "wsd" and self.warmup_ratio + self.decay_ratio > 1.0:
            raise BimbaError(
                f"optimizer.warmup_ratio and decay_ratio are {self.warmup_ratio} and {self.decay_ratio}, together more "
                "than the whole run; lower one of the two."
            )
        if not is_count(self.max_skipped_steps):
            raise BimbaError(f"optimizer.max_skipped_steps is {self.max_skipped_steps!r}; expected 1 or more.")


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter."""
    return parameter.ndim > 1 and name.rsplit(".", 1)[-1] not in SCAN_CONSTANTS


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon may train a parameter: it maps hidden to hidden vectors, so its update can be orthogonal."""
    return (
        is_decayed(name, parameter) and parameter.ndim == 2 and not any(part in name for part in ("embed", "lm_head"))
    )


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """The groups of the trained parameters, each with ``name``, ``lr`` and ``weight_decay``.

    Raises:
        BimbaError: nothing is trained, or a rate is set for a part without trained parameters.
    """
    own_rates = _own(settings, "lr")
    own_decays = _own(settings, "weight_decay")
    if settings.matrix_lr is not None:
        own_rates["matrices"] = settings.matrix_lr
    parts_of_matrices: set[str] = set()
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name).replace("vision_lora", "vision_tower")
        owner = part if part in own_rates or part in own_decays else "base"
        if settings.matrix_lr is not None and is_hidden_matrix(name, parameter):
            owner = "matrices"
            parts_of_matrices.add(part)
        decayed = is_decayed(name, parameter)
        group = groups.setdefault(
            (owner, decayed),
            {
                "name": owner if decayed else f"{owner}_no_decay",
                "lr": own_rates.get(owner, settings.lr),
                "weight_decay": own_decays.get(owner, settings.weight_decay) if decayed else 0.0,
                "params": [],
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise BimbaError("The model has no trained parameter; check model.tuning.")
    owners = {owner for owner, _ in groups}
    unused = [f"optimizer.{part}_lr" for part in own_rates if part not in owners]
    unused += [f"optimizer.{part}_weight_decay" for part in own_decays if part not in owners]
    if unused:
        keys = ", ".join(sorted(unused)).replace("matrices_lr", "matrix_lr")
        besides = " besides Muon's matrices" if parts_of_matrices else ""
        raise BimbaError(
            f"{keys} is set, but that part of the model has no trained parameters{besides}; set it to null."
        )
    return list(groups.values())


def _own(settings: OptimizerSettings, key: str) -> dict[str, float]:
    """The parts with a rate, or a decay, of their own."""
    values = {part: getattr(settings, f"{part}_{key}") for part in OWN}
    return {part: value for part, value in values.items() if value is not None}


def rate_factor(settings: OptimizerSettings, total_steps: int) -> Callable[[int], float]:
    """The factor on every group's rate as a function of the number of optimizer steps already taken."""
    warmup_steps = math.ceil(settings.warmup_ratio * total_steps)
    decay_steps = math.ceil(settings.decay_ratio * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        if settings.schedule == "constant":
            return 1.0
        if settings.schedule == "wsd":
            left = max(0, total_steps - step) / max(1, decay_steps)
            return 1.0 if left >= 1.0 else settings.min_lr_ratio + (1.0 - settings.min_lr_ratio) * left
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return settings.min_lr_ratio + (1.0 - settings.min_lr_ratio) * cosine

    return factor


class MuonWithAdamW(Optimizer):
    """torch's Muon for the group named "matrices" and torch's AdamW for all others, stepping as one optimizer."""

    def __init__(self, groups: list[dict[str, Any]], settings: OptimizerSettings):
        matrices = [group for group in groups if group["name"] == "matrices"]
        others = [group for group in groups if group["name"] != "matrices"]
        # match_rms_adamw: an update has the size that AdamW's would have, so that rates compare.
        self._muon = Muon(matrices, lr=settings.matrix_lr or 0.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        # AdamW takes no empty list, but a group without parameters: matrices may be all that is trained.
        others = others or [{"name": "base", "lr": settings.lr, "weight_decay": 0.0, "params": []}]
        self._adamw = AdamW(others, lr=settings.lr, betas=settings.betas, eps=settings.eps)
        super().__init__(self._adamw.param_groups + self._muon.param_groups, {})
        self._share()

    def _share(self) -> None:
        """Both optimizers work on this one's groups and state, so that schedules and checkpoints see one optimizer."""
        self._adamw.param_groups = [group for group in self.param_groups if group["name"] != "matrices"]
        self._muon.param_groups = [group for group in self.param_groups if group["name"] == "matrices"]
        self._adamw.state = self._muon.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = self._adamw.step(closure)
        if any(isinstance(p, DTensor) for group in self._muon.param_groups for p in group["params"]):
            self._step_sharded()
        else:
            self._muon.step()
        return loss

    @torch.no_grad()
    def _step_sharded(self) -> None:
        """An update depends on the whole matrix: each is put together, stepped on, and its parts dealt out again."""
        for group in self._muon.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                matrix, state = nn.Parameter(whole(parameter)), self.state[parameter]
                matrix.grad = whole(parameter.grad)
                muon = Muon([{**group, "params": [matrix]}])
                if state:
                    muon.state[matrix]["momentum_buffer"] = whole(state["momentum_buffer"])
                muon.step()
                local(parameter).copy_(part_like(matrix.detach(), parameter))
                state["momentum_buffer"] = dealt(muon.state[matrix]["momentum_buffer"], parameter)


def build_optimizer(model: nn.Module, settings: OptimizerSettings, total_steps: int) -> tuple[Optimizer, LambdaLR]:
    """The optimizer over ``model``'s trained parameters and its schedule, to be advanced once per optimizer step."""
    groups = parameter_groups(model, settings)
    optimizer: Optimizer
    if settings.matrix_lr is None:
        optimizer = AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    else:
        optimizer = MuonWithAdamW(groups, settings)
    return optimizer, LambdaLR(optimizer, rate_factor(settings, total_steps))
