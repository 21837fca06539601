"""One cell of a sweep: the command that runs it, and what its folder says of earlier attempts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bimba.processes import last_line, quoted
from bimba.runs import read_run
from bimba.types import BimbaError

OUTPUT = "output.log"
# Of the sweep, and not of its cells.
_OF_THE_SWEEP = (
    "hydra.sweep.", "hydra.sweeper", "hydra.launcher", "hydra/sweeper", "hydra/launcher", "hydra.mode", "hydra.run.",
    "hydra.job.config.override_dirname.",
)  # fmt: skip
_HYDRAS_LAST_WORDS = "Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        status: finished, failed, interrupted.
        seconds: that it took; of one that had finished earlier, what it took then.
        error: its message; None of a finished one.
        objective: what the run gives as such.
        note: what else to say.
    """

    status: str
    seconds: float
    error: str | None = None
    objective: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A run of a sweep.

    Attributes:
        script: ``train.py``.
        folder: of the run.
        overrides: that choose its configuration.
        more: other arguments: options of the command, and what configures Hydra.
        cwd: the folder that relative paths in the overrides mean.
    """

    script: Path
    folder: Path
    overrides: tuple[str, ...]
    more: tuple[str, ...]
    cwd: Path

    @classmethod
    def from_config(cls, script: Path, config: DictConfig, folder: Path) -> Cell:
        """The cell that Hydra has composed a configuration for.

        Args:
            config: with the node ``hydra``.
        """
        hydra = config.hydra
        more = ["--config-name", hydra.job.config_name]
        for source in hydra.runtime.config_sources:
            if source.provider == "command-line":
                more += ["--config-dir", source.path]
        more += [one for one in hydra.overrides.hydra if not one.lstrip("+~").startswith(_OF_THE_SWEEP)]
        return cls(script, folder, tuple(hydra.overrides.task), tuple(more), Path(hydra.runtime.cwd))

    @property
    def name(self) -> str:
        return self.folder.name

    def command(self) -> list[str]:
        """Runs it in its folder, or goes on with what an earlier attempt left there."""
        resume = [] if any(_key(one) == "resume" for one in self.overrides) else ["resume=auto"]
        run_dir = f"hydra.run.dir={quoted(self.folder)}"
        return [sys.executable, str(self.script), *self.more, *self.overrides, run_dir, *resume]

    def earlier(self) -> Outcome | None:
        """How it ended, if it has finished already.

        Raises:
            BimbaError: its folder holds a finished run with other overrides.
        """
        run = read_run(self.folder)
        if run is None or run.get("status") != "finished":
            return None
        then, now = (
            {one for one in overrides if _key(one) != "resume"} for overrides in (run["overrides"], self.overrides)
        )
        if then != now:
            raise BimbaError(
                f"{self.folder} holds a run with other overrides: it had {_listed(then - now)}, this cell has "
                f"{_listed(now - then)}. Give another hydra.sweep.dir, or remove the folder."
            )
        seconds = run["train_seconds"] + sum(run["evaluation_seconds"].values())
        return Outcome("finished", round(seconds, 3), objective=run.get("objective"))

    def ended(self, returncode: int, seconds: float, began: str) -> Outcome:
        """How its process ended.

        Args:
            returncode: of the process.
            began: ``started`` of the attempt before, by which its record is told from this one's.
        """
        run: dict[str, Any] = read_run(self.folder) or {}
        is_of_this = run.get("started", "") != began
        if returncode == 0 and is_of_this and run.get("status") == "finished":
            return Outcome("finished", seconds, objective=run["objective"])
        error = run.get("error") if is_of_this else None
        if error is None and returncode < 0:
            error = f"killed by {signal.Signals(-returncode).name}"
        if error is None:
            error = last_line(self.folder / OUTPUT, but=(_HYDRAS_LAST_WORDS,)) or f"it ended with {returncode}"
        return Outcome("failed", seconds, str(error))


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~")


def _listed(overrides: Sequence[str] | set[str]) -> str:
    return " ".join(sorted(overrides)) or "none of them"
