"""How far the run is, in optimizer steps."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, TextIO

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class StepProgress(ProgressBar):
    """One bar for the whole run; where there is no terminal, a line every ``1 / lines`` of it.

    Args:
        lines: how many lines a run without a terminal prints.
    """

    def __init__(self, lines: int = 10):
        super().__init__()
        self.lines = lines
        self._enabled = True
        self._bar: Progress | None = None
        self._redirected: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:  # Lightning's call on every rank but the first
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        self._num_steps = None if steps == float("inf") else int(steps)
        self._first_step = self._last_printed = trainer.global_step
        self._started_s = time.perf_counter()
        console = Console()
        if not self._enabled or not console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
        )
        self._task = self._bar.add_task("Step", total=self._num_steps, completed=trainer.global_step, metrics="")
        self._bar.start()
        self._redirect_logging()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, metrics=self._metrics(trainer, pl_module))
        elif self._enabled and self._is_time_for_a_line(trainer.global_step):
            self._last_printed = trainer.global_step
            pace_s = (time.perf_counter() - self._started_s) / (trainer.global_step - self._first_step)
            total = "" if self._num_steps is None else f"/{self._num_steps}"
            print(
                f"step {trainer.global_step}{total}  {self._metrics(trainer, pl_module)}  {pace_s:.2f} s/step",
                flush=True,
            )

    def _is_time_for_a_line(self, step: int) -> bool:
        if step == self._last_printed:
            return False  # one of several batches of a step
        every = max(1, (self._num_steps or 1000) // self.lines)
        return step % every == 0 or step == self._num_steps

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._describe("Validation after step")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._describe("Step")

    def _describe(self, description: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=description, refresh=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        for handler, stream in self._redirected:
            handler.setStream(stream)
        self._redirected = []

    def _redirect_logging(self) -> None:
        """Log lines go through the bar's own stdout and stderr while it is drawn, so they land above it."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.__stdout__, sys.__stderr__):
                self._redirected.append((handler, handler.stream))
                handler.setStream(sys.stdout)

    def _metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> str:
        metrics = {k: v for k, v in self.get_metrics(trainer, pl_module).items() if isinstance(v, int | float)}
        metrics.pop("v_num", None)
        return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
