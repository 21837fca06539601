"""Ctrl-C, SIGTERM and SIGUSR1 let a run finish its optimizer step; a job that Slurm preempted is queued again."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """The run was asked to end, and has done so after a whole optimizer step.

    Attributes:
        signum: of the signal; 0 on a process that only heard of it from another one.
        requeued: whether Slurm has the job in its queue again.
    """

    def __init__(self, signum: int, requeued: bool, message: str):
        super().__init__(message)
        self.signum = signum
        self.requeued = requeued


class StopSignals:
    """Notes the first signal that asks the run to end. A second Ctrl-C ends it at once, as Python does."""

    def __init__(self) -> None:
        self.received: int = 0
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def listen(self) -> None:
        """From now on; only a process's main thread can."""
        self.received = 0
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {signum: signal.signal(signum, self._note) for signum in _SIGNALS}

    def give_back(self) -> None:
        """The signals mean what they meant before."""
        before, self._before = self._before, {}
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.received:
            self.received = signum
            # Not log: a signal may come in the middle of a line that is being logged.
            again = " (again: at once, without its state)" if signum == signal.SIGINT else ""
            os.write(2, f"\n{signal.Signals(signum).name}: the run ends after this optimizer step{again}.\n".encode())


def requeue(signum: int) -> bool:
    """Asks Slurm to run this job again, where that is what the signal meant; whether it will.

    SIGUSR1 means that the job's time is nearly up (``#SBATCH --signal=USR1@120``). SIGTERM means so only if Slurm has
    preempted the job: it comes from ``scancel`` too.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or signum not in (signal.SIGTERM, signal.SIGUSR1):
        return False
    if os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if signum == signal.SIGTERM and not _is_preempted(job):
        log.info("Slurm job %s was not preempted, so it is not queued again.", job)
        return False
    done = _scontrol("requeue", job)
    if done is None:
        return False
    log.info("Slurm job %s is queued again.", job)
    return True


def _is_preempted(job: str) -> bool:
    described = _scontrol("show", "job", job)
    if described is None:
        return False
    values = dict(entry.partition("=")[::2] for entry in described.split())
    return values.get("PreemptTime", "None") not in ("None", "N/A", "Unknown")


def _scontrol(*arguments: str) -> str | None:
    """What the command prints; None, with a line that says why, if it fails."""
    command = ["scontrol", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or "").strip()
        log.error("`%s` failed, so the job is not queued again: %s %s", " ".join(command), error, said)
        return None
    return done.stdout
