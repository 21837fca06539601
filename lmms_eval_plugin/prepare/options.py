"""What ``bimba prepare`` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """How to prepare.

    Attributes:
        home: HF_HOME, absolute. The variable must say the same when the first library that reads it is imported.
        origin: a folder that may hold what is missing.
        dry_run: change nothing, and fetch nothing.
        offline: fetch nothing.
        subtitles: the tasks that read subtitles are to run too.
        probe: open every video.
        named: what HF_HOME was set to before the command; empty if it was not.
        chosen: the command itself named the folder.
    """

    home: Path
    origin: Path | None = None
    dry_run: bool = False
    offline: bool = False
    subtitles: bool = False
    probe: bool = False
    named: str = ""
    chosen: bool = False

    @property
    def may_fetch(self) -> bool:
        return not (self.dry_run or self.offline)
