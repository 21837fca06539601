"""Brings missing files to where they are wanted, from this machine first, from the hub if that may be asked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from bimba.types import BimbaError
from lmms_eval_plugin.prepare import hub
from lmms_eval_plugin.prepare.home import free_bytes
from lmms_eval_plugin.prepare.options import Options
from lmms_eval_plugin.prepare.places import Move, Places, bytes_needed, carry_out
from lmms_eval_plugin.prepare.report import size
from lmms_eval_plugin.prepare.sources import Table


@dataclass
class Plan:
    """What brings wanted files to their places.

    Attributes:
        moves: one for each file that was found.
        unfound: those that are nowhere on this machine.
    """

    moves: list[Move] = field(default_factory=list)
    unfound: list[str] = field(default_factory=list)

    @property
    def bytes_needed(self) -> int:
        return bytes_needed(self.moves)

    def __str__(self) -> str:
        links = sum(move.find.file is not None for move in self.moves)
        taken = len(self.moves) - links
        parts = [f"link {links} files"] if links else []
        return " and ".join([*parts, f"extract {taken} files, {size(self.bytes_needed)}"] if taken else parts)


class Completion:
    """Knows where missing files of one benchmark may be, and what has been done.

    Attributes:
        problems: what stands in the way, for the report.
        done: what was done, in words.
    """

    def __init__(self, folder: Path, table: Table | None, options: Options, may_fetch: bool):
        self.folder, self.table, self.options, self.may_fetch = folder, table, options, may_fetch
        self.problems: list[str] = []
        self.done: list[str] = []
        self._places: Places | None = None

    @property
    def copies(self) -> list[Path]:
        """Folders on this machine that may hold the benchmark or a part of it."""
        folders = [self.options.origin, self.folder if self.folder.is_dir() else None]
        if self.table is not None:
            folders.append(hub.snapshot_of(self.table.repository, self.options.home))
        return [folder for folder in folders if folder is not None]

    def plan(self, wanted: Iterable[str], suffixes: Sequence[str] = ()) -> Plan:
        if self._places is None:
            self._places = Places()
            for folder in self.copies:
                self._places.search(folder)
        plan = Plan()
        for name in wanted:
            if not Path(os.path.normpath(self.folder / name)).is_relative_to(self.folder):
                self.problems.append(f"{name} leads out of {self.folder}; nothing is put there")
                continue
            found = self._places.find(name, suffixes)
            if found is None:
                plan.unfound.append(name)
            else:
                plan.moves.append(Move(self.folder / found[0], found[1]))
        self.problems += [said for said in self._places.broken if said not in self.problems]
        return plan

    def fetch(self, leave_out: tuple[str, ...]) -> bool:
        """Downloads the repository, if that is allowed and there is space; False if not, and why is in ``problems``."""
        if not self.may_fetch or self.table is None:
            return False
        repository, home = self.table.repository, self.options.home
        try:
            missing = hub.missing_bytes(repository, home, leave_out)
            # Archives are kept, and what is in them takes about as much again: videos do not get smaller by packing.
            needed = 2 * missing if leave_out == hub.SOUND else missing
            self._check_space(needed, hub.cache(home), f"downloading {repository} ({size(missing)}) and unpacking it")
            hub.fetch(repository, home, leave_out)
        except BimbaError as error:
            self.problems.append(str(error))
            self.may_fetch = False  # once is enough
            return False
        self.done.append(f"downloaded {size(missing)}")
        self._places = None
        return True

    def carry_out(self, plan: Plan) -> None:
        """Links and extracts; what cannot be is in ``problems``."""
        if not plan.moves:
            return
        try:
            self._check_space(plan.bytes_needed, self.folder, "extracting")
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self.folder.with_name(f".{self.folder.name}.bimba-prepare.lock")
            with FileLock(lock, timeout=0):
                for _ in tqdm(carry_out(plan.moves), total=len(plan.moves), unit="file", disable=None):
                    pass
        except Timeout:
            self.problems.append(f"another `bimba prepare` is putting files to {self.folder}; wait for it")
        except (BimbaError, OSError) as error:
            self.problems.append(str(error))
        else:
            self.done.append(f"done: {plan}")

    def _check_space(self, needed: int, folder: Path, what: str) -> None:
        free = free_bytes(folder)
        if needed > free:
            raise BimbaError(f"the disk of {folder} has {size(free)} free; {what} needs {size(needed)}")
