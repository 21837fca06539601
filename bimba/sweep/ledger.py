"""``sweep.json`` in a sweep's folder: what its cells are, and how far each is."""

from __future__ import annotations

import json
from pathlib import Path

from filelock import FileLock

from bimba.runs import write_json
from bimba.sweep.cell import Cell, Outcome

FILE_NAME = "sweep.json"


def note(sweep_dir: Path, cell: Cell, outcome: Outcome | None) -> None:
    """Enters the state of a cell, at its start (None) and at its end; cells of several processes go in together."""
    sweep_dir.mkdir(parents=True, exist_ok=True)
    path = sweep_dir / FILE_NAME
    entry = {
        "cell": cell.name,
        "overrides": list(cell.overrides),
        "status": "running" if outcome is None else outcome.status,
        "seconds": 0.0 if outcome is None else outcome.seconds,
        "error": None if outcome is None else outcome.error,
    }
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
