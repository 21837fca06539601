"""What the processes of a data loader do when the run that they belong to is asked to end."""

from __future__ import annotations

import signal
from types import FrameType

import torch


def outlive_signals(worker: int) -> None:
    """As ``worker_init_fn``: Ctrl-C and Slurm's SIGTERM reach every process of a run, which still needs its data.

    The training process decides when its workers end. A second SIGTERM is obeyed: it may be that process's own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _spare)


def _spare(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def own_chance(seed: int) -> torch.Generator:
    """As ``generator``: the loader draws its workers' seeds there, and leaves the generator of dropout alone.

    Otherwise a run that resumes, and so makes its loader anew, would have other dropout masks than one that goes on.
    """
    return torch.Generator().manual_seed(seed)
