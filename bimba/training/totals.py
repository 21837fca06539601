"""What an optimizer step adds up over its batches and processes, and what becomes of its gradients then."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bimba.training.trainable import part_of


@dataclass
class StepTotals:
    """Of the batches since the last optimizer step, on this process.

    Attributes:
        loss_sum: over supervised tokens; of the mean over batches: over batches.
        num_tokens: how many supervised tokens there were.
        num_batches: how many batches had any.
        ids: of the samples.
    """

    loss_sum: Tensor | float = 0.0
    num_tokens: int = 0
    num_batches: int = 0
    ids: list[str] = field(default_factory=list)

    def add(self, loss: Tensor, num_tokens: int, ids: Iterable[str]) -> None:
        self.loss_sum = self.loss_sum + loss.detach()
        self.num_tokens += num_tokens
        self.num_batches += 1
        self.ids += ids


@dataclass(frozen=True)
class Step:
    """A whole optimizer step, over all processes; every process has the same.

    Attributes:
        loss_sum, num_tokens, num_batches: see ``StepTotals``.
        norms: of the gradients of each trained part, as they are.
    """

    loss_sum: float
    num_tokens: int
    num_batches: int
    norms: Mapping[str, float]

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss_sum) and all(map(math.isfinite, self.norms.values()))


def sum_over_processes(totals: StepTotals, model: nn.Module, device: torch.device) -> Step:
    """The step's totals over all processes, in one exchange.

    Sharded gradients are in parts here and there; otherwise every process has them whole, so the sum is divided.
    """
    parts: dict[str, Tensor] = {}
    sharded = False
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name)
        squares = parts.setdefault(part, torch.zeros((), dtype=torch.float64, device=device))
        if parameter.grad is not None:
            local = parameter.grad
            if isinstance(local, DTensor):
                sharded, local = True, local.to_local()
            squares += torch.linalg.vector_norm(local, dtype=torch.float64).square().to(device)
    counts = torch.tensor([totals.num_tokens, totals.num_batches, float(sharded)], dtype=torch.float64, device=device)
    loss = torch.as_tensor(totals.loss_sum, dtype=torch.float64, device=device)
    numbers = torch.stack([loss, *counts, *parts.values()])
    world_size = 1
    if torch.distributed.is_initialized():
        world_size = torch.distributed.get_world_size()
        torch.distributed.all_reduce(numbers)
    loss_sum, num_tokens, num_batches, num_sharded, *squares_of = numbers.tolist()
    copies = 1 if num_sharded else world_size
    norms = {part: math.sqrt(value / copies) if value >= 0 else math.nan for part, value in zip(parts, squares_of)}
    return Step(loss_sum, round(num_tokens), round(num_batches), norms)


def scale_gradients(model: nn.Module, factor: float) -> None:
    """Multiplies every gradient."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def drop_gradients(model: nn.Module) -> None:
    """No gradient at all, so that the optimizer leaves every weight and all of its own state as they are."""
    for parameter in model.parameters():
        parameter.grad = None
