"""What the callbacks that report something share: when it is time, and how it gets to the loggers.

Lightning's ``self.log`` repeats a value at every step until the next one; what is measured now and then goes to the
loggers directly. Reports of several ranks are summed by collectives that every rank takes part in: whether it is time
depends on the optimizer step alone, which is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from bimba.training.loggers import Dashboard
from bimba.types import BimbaError


class PeriodicCallback(L.Callback):
    """Something done after every so many optimizer steps, and after the last one.

    Args:
        every_n_steps: None: never.
    """

    def __init__(self, every_n_steps: int | None):
        if every_n_steps is not None and every_n_steps < 1:
            raise BimbaError(f"every_n_steps is {every_n_steps}; expected 1 or more, or null for never.")
        self.every_n_steps = every_n_steps
        self._done_at_step = 0
        self._last_step: int | float = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._done_at_step = trainer.global_step
        self._last_step = trainer.estimated_stepping_batches  # whether max_steps or max_epochs ends the run

    def is_due_after(self, trainer: L.Trainer, step: int) -> bool:
        """Whether it is time once ``step`` optimizer steps are done."""
        if self.every_n_steps is None:
            return False
        return step % self.every_n_steps == 0 or step == self._last_step

    def is_due(self, trainer: L.Trainer) -> bool:
        """Whether it is time, at the end of a batch; once per step, of which several batches may be part."""
        step = trainer.global_step
        if step == self._done_at_step or not self.is_due_after(trainer, step):
            return False
        self._done_at_step = step
        return True


def report(trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
    """Gives values of the step that just ended to the loggers."""
    if not trainer.is_global_zero or not metrics:
        return
    for logger in trainer.loggers:
        if isinstance(logger, Dashboard):
            logger.add_metrics(metrics, step_of(trainer))
        else:
            logger.log_metrics(dict(metrics), step_of(trainer))


def dashboards(trainer: L.Trainer) -> list[Dashboard]:
    """The loggers that take more than numbers; none on other ranks than the first."""
    loggers: list[Any] = trainer.loggers if trainer.is_global_zero else []
    return [logger for logger in loggers if isinstance(logger, Dashboard)]


def step_of(trainer: L.Trainer) -> int:
    """The number under which Lightning logs the step that just ended: it counts from 0."""
    return max(0, trainer.global_step - 1)


def summed(trainer: L.Trainer, values: Tensor) -> Tensor:
    """The sum over all ranks; all of them have to call it."""
    return trainer.strategy.reduce(values.to(trainer.strategy.root_device), reduce_op="sum").cpu()


def gathered(trainer: L.Trainer, value: Any) -> list[Any]:
    """What each rank has; all of them have to call it."""
    if trainer.world_size == 1:
        return [value]
    values = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values
