"""The callback that keeps a run's state on disk, and ends the run in good order when it is asked to."""

from __future__ import annotations

import itertools
import logging
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from bimba.training import randomness
from bimba.training.checkpointing import newest_first, remove, remove_unfinished
from bimba.training.signals import Stopped, StopSignals, requeue
from bimba.types import BimbaError

log = logging.getLogger(__name__)


class KeepState(Checkpoint):
    """Writes ``<run_dir>/resume/step_<N>.ckpt`` every so many optimizer steps, at the end, and when a signal ends it.

    Each has what a run needs to go on as if nothing had happened: trained weights, optimizer, position in the data, and
    the random generators of each process. It is only ever written between two optimizer steps. Lightning calls this
    callback after all others, so the state that they add is that of the same step. If a file cannot be written,
    training goes on and tries again at the next one's turn.

    Args:
        run_dir: gets the folder ``resume``. What an earlier run left in it is moved aside unless this run resumes it.
        every_n_steps: optimizer steps between two files.
        keep: how many files stay, 2 or more: the last one may turn out to be damaged.
        requeue: a preempted Slurm job is queued again.
    """

    def __init__(self, run_dir: str | Path, every_n_steps: int = 100, keep: int = 2, requeue: bool = True):
        if every_n_steps < 1:
            raise BimbaError(f"callbacks.resume.every_n_steps is {every_n_steps}; expected 1 or more.")
        if keep < 2:
            raise BimbaError(f"callbacks.resume.keep is {keep}; expected 2 or more files.")
        self.folder = Path(run_dir) / "resume"
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.requeue = requeue
        self.failures = 0
        self._step = 0  # the last step that this callback has dealt with
        self._signals = StopSignals()
        self._stopped: Stopped | None = None
        self._states: list[randomness.State] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        if trainer.is_global_zero:
            resumed_here = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve().parent == (
                self.folder.resolve()
            )
            if not resumed_here:
                _move_aside(self.folder)
            remove_unfinished(self.folder)
        self._signals.listen()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self._stopped is not None:
            raise self._stopped
        states, self._states = self._states, None
        if states is None:
            return
        # Now, not before: all that a run draws from its generators when it starts has been drawn.
        seed = (torch.initial_seed(), trainer.global_step)
        if not randomness.restore(states, trainer.global_rank, trainer.world_size, seed) and trainer.is_global_zero:
            log.info(
                "%d processes go on where %d stopped: dropout masks are others than they would have been.",
                trainer.world_size,
                len(states),
            )

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            return  # in the middle of a step
        self._step = trainer.global_step
        signum = self._signal_anywhere(trainer)
        is_last = self._step == trainer.estimated_stepping_batches
        if not signum and not is_last and self._step % self.every_n_steps:
            return
        is_written = self._save(trainer)
        if signum and not is_last:
            # Now, as the time that is left may be short; but the step's metrics are only logged after this hook, and
            # validation may follow: the run ends before the next batch.
            self._stopped = self._stop(trainer, signum, is_written)

    def _signal_anywhere(self, trainer: L.Trainer) -> int:
        """The signal that any process received, on all of them."""
        if trainer.world_size == 1:
            return self._signals.received
        number = torch.tensor(self._signals.received, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return int(number)

    def _save(self, trainer: L.Trainer) -> bool:
        path = self.folder / f"step_{self._step:08d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        failure = getattr(trainer.strategy.checkpoint_io, "failure", None)  # of the first process, which writes
        if failure is None:
            if trainer.is_global_zero:
                for old in newest_first(self.folder)[self.keep :]:
                    remove(old)
            return True
        self.failures += 1
        log.error(
            "%s. Training goes on, and tries again after %d steps (%d failures so far); what was written before stays.",
            failure,
            self.every_n_steps,
            self.failures,
        )
        return False

    def _stop(self, trainer: L.Trainer, signum: int, is_written: bool) -> Stopped:
        requeued = trainer.is_global_zero and self.requeue and requeue(signum)
        requeued = bool(trainer.strategy.broadcast(requeued))
        name = signal.Signals(signum).name
        if is_written:
            how = f"resume={self.folder}"
        else:
            how = f"resume={self.folder}, from an earlier step, as this one's could not be written"
        return Stopped(signum, requeued, f"{name} ended the run after step {self._step}. To go on: {how}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._signals.give_back()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._signals.give_back()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Every process comes here."""
        checkpoint["random_states"] = randomness.states_everywhere(trainer.world_size)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._states = checkpoint.get("random_states")


def _move_aside(folder: Path) -> None:
    """Files of an earlier run: this one's would be taken for theirs, and they for this one's."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}.{n}").exists())
    aside = folder.with_name(f"{folder.name}.{number}")
    folder.rename(aside)
    log.warning("%s is of an earlier run, which this one does not resume; it is now %s.", folder, aside)
