"""Programs of ours that run as processes of their own: what they inherit, take, and say at the end."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

# What launchers (Lightning, torchrun, Slurm's srun) tell a process of its place among others.
_RANKS = {
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
}  # fmt: skip


def environment_of_a_fresh_process() -> dict[str, str]:
    """This process's environment without its place among others: whoever gets it is the first of its own."""
    return {
        key: value
        for key, value in os.environ.items()
        if key not in _RANKS and not key.startswith(("TORCHELASTIC_", "ROLE_"))
    }


def quoted(value: str | os.PathLike[str]) -> str:
    """A value as Hydra's command line takes it literally, whatever characters it has."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(os.fspath(value), Quote.single).with_quotes()


def last_line(path: Path, but: Sequence[str] = ()) -> str:
    """The last line of an output, such as the message of the error that ended it; "" without one.

    Args:
        but: lines that do not count, as empty ones do not.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    return next((line for line in reversed(lines) if line and line not in but), "")


def peak_memory_mib() -> float:
    """The most that this process had in memory."""
    try:  # not getrusage: a child begins there with what its parent had
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        in_bytes = sys.platform == "darwin"
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if in_bytes else 2**10)
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
