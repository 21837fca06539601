"""``sweep.json`` in a sweep's folder: what its cells are, and how far each is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from bimba.runs import write_json
from bimba.sweep.cell import Cell, Outcome

FILE_NAME = "sweep.json"


def plan(sweep_dir: Path, cells: Sequence[Cell]) -> None:
    """Enters the cells that are not there yet, as waiting: a sweep that is ended before their turn still lacks them.

    Those that an earlier one never began, and this one does not ask for, are not waited for any longer.
    """
    sweep_dir.mkdir(parents=True, exist_ok=True)
    path = sweep_dir / FILE_NAME
    with FileLock(str(sweep_dir / "sweep.lock")):
        entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        wanted = {cell.name for cell in cells}
        entries = [one for one in entries if one["status"] != "waiting" or one["cell"] in wanted]
        names = {one["cell"] for one in entries}
        entries += [_entry(cell, "waiting", 0.0, None) for cell in cells if cell.name not in names]
        write_json(path, entries)


def _entry(cell: Cell, status: str, seconds: float, error: str | None) -> dict[str, Any]:
    overrides = list(cell.overrides)
    return {"cell": cell.name, "overrides": overrides, "status": status, "seconds": seconds, "error": error}


def note(sweep_dir: Path, cell: Cell, outcome: Outcome | None) -> None:
    """Enters the state of a cell, at its start (None) and at its end; cells of several processes go in together."""
    sweep_dir.mkdir(parents=True, exist_ok=True)
    path = sweep_dir / FILE_NAME
    if outcome is None:
        entry = _entry(cell, "running", 0.0, None)
    else:
        entry = _entry(cell, outcome.status, outcome.seconds, outcome.error)
    with FileLock(str(sweep_dir / "sweep.lock")):
        entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        names = [one["cell"] for one in entries]
        if cell.name in names:
            if outcome is not None and outcome.note and entries[names.index(cell.name)]["status"] == outcome.status:
                return  # it had finished, and how long it took is known better
            entries[names.index(cell.name)] = entry
        else:
            entries.append(entry)
        write_json(path, entries)
