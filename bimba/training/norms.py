"""How far each part of the model moves in a step."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from bimba.training.reporting import PeriodicCallback, report
from bimba.training.trainable import part_of


class UpdateNorms(PeriodicCallback):
    """Logs of each trained part the norm of its weights, of the step's change to them, and their ratio.

    Keys are ``update_norm/<part>``, ``weight_norm/<part>`` and ``update_ratio/<part>``; of the gradients before
    clipping, ``BimbaModule`` logs ``train/grad_norm/<part>`` at every step. A healthy ratio is about 1e-3 for weights
    trained from nothing and much smaller in fine-tuning.

    Costs, in a step that is reported, a copy of the trained weights (this rank's share of them, if they are sharded)
    and reading them twice.
    """

    def __init__(self, every_n_steps: int | None = 50):
        super().__init__(every_n_steps)
        self._before: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.is_due_after(trainer, trainer.global_step + 1):
            self._before = {name: weight.detach().clone() for name, weight in _trained(pl_module).items()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if not self.is_due(trainer):
            return
        before, self._before = self._before, {}
        parts: dict[str, list[str]] = {}
        for name in before:
            parts.setdefault(part_of(name), []).append(name)
        after = _trained(pl_module)
        metrics = {}
        for part, names in parts.items():
            update = norm([after[name].detach() - before[name] for name in names])
            weight = norm([after[name].detach() for name in names])
            metrics[f"update_norm/{part}"] = update
            metrics[f"weight_norm/{part}"] = weight
            metrics[f"update_ratio/{part}"] = update / weight if weight else 0.0
        report(trainer, metrics)


def _trained(pl_module: Any) -> dict[str, Tensor]:
    return {name: weight for name, weight in pl_module.model.named_parameters() if weight.requires_grad}


def norm(tensors: list[Tensor]) -> float:
    """The norm of all numbers in the tensors; of sharded ones the whole's, so that every rank has to call it."""
    total: Any = get_total_norm(tensors)
    return float(total.full_tensor() if isinstance(total, DTensor) else total)
