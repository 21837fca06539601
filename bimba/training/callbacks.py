"""What happens around training steps: bad videos are counted and capped, and the model is kept safe on disk."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bimba.checkpoint import check_destination, save_pretrained
from bimba.training.ema import averaged
from bimba.training.export import save_sharded
from bimba.training.parallel import ShardedStrategy
from bimba.training.signals import Stopped
from bimba.types import BadSample, Batch, BimbaError

log = logging.getLogger(__name__)


class BadVideoGuard(L.Callback):
    """Bad samples are skipped, counted, listed with their error, and end the run once they are too many.

    The rule: stop as soon as ``bad > max_bad_share * max(seen, min_samples)``. So at 1 % and 100 samples one bad
    sample among the first hundred is put up with, a second one is not. Every sample this rank meets counts, those of
    validation too.

    Args:
        run_dir: gets ``bad_videos.jsonl``, one line ``{"step", "path", "error"}`` per bad sample.
        max_bad_share: the largest share of bad samples that is put up with, 0 to 1.
        min_samples: until so many samples are seen, the share is taken of this number.
    """

    FILE_NAME = "bad_videos.jsonl"

    def __init__(self, run_dir: str | Path, max_bad_share: float = 0.01, min_samples: int = 100):
        if not 0.0 <= max_bad_share <= 1.0:
            raise BimbaError(f"max_bad_share is {max_bad_share}; expected a share between 0 and 1.")
        if min_samples < 1:
            raise BimbaError(f"min_samples is {min_samples}; expected 1 or more samples.")
        self.path = Path(run_dir) / self.FILE_NAME
        self.max_bad_share = max_bad_share
        self.min_samples = min_samples
        self.seen = 0
        self.bad = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not self.path.is_file():
            return
        if trainer.global_step == 0:  # an earlier run's
            self.path.unlink()
        else:
            self._keep_steps_before(trainer.global_step)

    def _keep_steps_before(self, step: int) -> None:
        """Drops the samples of later steps from the list: they will be met again."""
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n") and json.loads(line)["step"] < step:  # else cut off when a run was killed
                kept.append(line)
        unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        unfinished.write_text("".join(kept), encoding="utf-8")
        os.replace(unfinished, self.path)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, *_: Any) -> None:
        self._count(trainer, batch)
        pl_module.log("data/bad_videos", float(self.bad), batch_size=1)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, *_: Any
    ) -> None:
        if not trainer.sanity_checking:  # which shows a few of the samples that validation will meet again
            self._count(trainer, batch)

    def _count(self, trainer: L.Trainer, batch: Batch) -> None:
        bad = batch.get("bad_samples", [])
        self.seen += len(bad) + (len(batch["input_ids"]) if "input_ids" in batch else 0)
        if bad:
            self.bad += len(bad)
            self._write(trainer.global_step, bad)
        if self.bad > self.max_bad_share * max(self.seen, self.min_samples):
            raise BimbaError(
                f"{self.bad} of the first {self.seen} samples could not be read. The rule: at most "
                f"{self.max_bad_share:.3g} (callbacks.bad_videos.max_bad_share) of the samples seen, counted as at "
                f"least {self.min_samples} (min_samples). Each is listed with its error in {self.path}, the last one "
                f"is: {bad[-1].error if bad else 'see there'} Repair or remove these files, or raise the allowed share."
            )

    def _write(self, step: int, bad: list[BadSample]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for sample in bad:
                log.warning("Skipped a sample: %s", sample.error)
                file.write(json.dumps({"step": step, "path": sample.path, "error": sample.error}) + "\n")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.bad:
            log.warning("%d of %d samples could not be read; see %s", self.bad, self.seen, self.path)

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen, "bad": self.bad}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.seen, self.bad = state_dict["seen"], state_dict["bad"]


class SaveCheckpoint(L.Callback):
    """Keeps ``<run_dir>/checkpoint/``: the whole model as everything else loads it, adapters merged.

    With the callback ``Ema``, its means are written in the place of the weights.

    Written at the end, after every ``every_n_steps`` optimizer steps, and when a signal ends the run, unless Slurm is
    to go on with it. Also when it is interrupted at once or stopped by a ``BimbaError``, but not then with
    ``trainer=fsdp``, where all processes must take part.
    After any other error the weights may be what is wrong: the last one written stays. The folder is complete or
    absent, never half written.

    Args:
        run_dir: gets the folder ``checkpoint``.
        every_n_steps: None: only at the end.
    """

    def __init__(self, run_dir: str | Path, every_n_steps: int | None = None):
        if every_n_steps is not None and every_n_steps < 1:
            raise BimbaError(f"every_n_steps is {every_n_steps}; expected 1 or more, or null for the end only.")
        self.folder = Path(run_dir) / "checkpoint"
        self.every_n_steps = every_n_steps
        self._saved_at_step: int | None = None  # the step of the weights in the folder, or the one training began with

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            check_destination(self.folder, replace=True)  # now, not when the first checkpoint is to be written
        self._saved_at_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            try:
                self._save_if_new(trainer, pl_module)
            except BimbaError as error:  # on a full disk, say; what was written before stays
                log.error("%s Training goes on, and tries again after %d steps.", error, self.every_n_steps)
                self._saved_at_step = -1  # not this one, should it be the last

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._saved_at_step or not self.folder.is_dir():  # not there: a run of no steps
            self._save(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped):  # on all processes, after the same step
            if not exception.requeued:
                self._save_if_new(trainer, pl_module)
            return
        if isinstance(trainer.strategy, ShardedStrategy):
            return  # the others may be anywhere, and all must take part
        if self._saved_at_step is not None and isinstance(exception, KeyboardInterrupt | SIGTERMException | BimbaError):
            self._save_if_new(trainer, pl_module)

    def _save_if_new(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # With accumulation several batches share a step: one save.
        if trainer.global_step != self._saved_at_step:
            self._save(trainer, pl_module)

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at_step = trainer.global_step
        module: Any = pl_module  # a BimbaModule
        with averaged(trainer, module):
            if isinstance(trainer.strategy, ShardedStrategy):
                save_sharded(module.model, module.processor, self.folder, trainer.strategy)
            elif trainer.is_global_zero:
                save_pretrained(module.model, module.processor, self.folder)
        if trainer.is_global_zero:
            log.info("The model after step %d is in %s", trainer.global_step, self.folder)
