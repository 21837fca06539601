"""Finding the runs that a report is about: run folders, sweep folders, and patterns of either."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bimba.types import BimbaError

RUN, SWEEP, CONFIG = "run.json", "sweep.json", "config.yaml"
DEEPEST = 3  # folders between a sweep and its runs


@dataclass(frozen=True)
class Found:
    """A cell of a sweep.

    Attributes:
        folder: of the run; there is none if it failed before it made one.
        name: the end of its path, different for each.
        planned: its row of sweep.json; empty without.
    """

    folder: Path
    name: str
    planned: Mapping[str, Any]


def find_runs(given: Sequence[str]) -> list[Found]:
    """The runs that the arguments mean, each once, in their order.

    Args:
        given: run folders, sweep folders (of ``train.py -m``, or any folder that holds runs), patterns such as
            ``outputs/sweep/*``. Files among them are passed over: a shell's ``sweep/*`` names sweep.json too.

    Raises:
        BimbaError: nothing is there, a folder is no run and holds none, or a sweep.json is none.
    """
    found: dict[Path, Found] = {}
    for argument in given:
        paths = [Path(argument)] if os.path.exists(argument) else [Path(p) for p in sorted(glob.glob(argument))]
        if not paths:
            raise BimbaError(f"{argument}: no such folder. Give a run's folder, a sweep's, or a pattern in quotes.")
        for path in paths:
            if path.is_dir():
                for one in _runs_of(path):
                    found.setdefault(one.folder.resolve(), one)
    if not found:
        raise BimbaError(f"{' '.join(given)}: only files. Give the folder of a run or a sweep.")
    return _named(list(found.values()))


def is_run(folder: Path) -> bool:
    return (folder / RUN).is_file() or (folder / CONFIG).is_file()


def _runs_of(folder: Path) -> list[Found]:
    if is_run(folder):
        return [Found(folder, "", {})]
    planned = _plan(folder)
    runs = {path: Found(path, "", {}) for path in sorted(_inside(folder, DEEPEST), key=_natural)}
    runs |= {folder / name: Found(folder / name, "", row) for name, row in planned.items()}
    if not runs:
        raise BimbaError(
            f"{folder} is no run and holds none: expected {RUN} or {CONFIG} in it, as train.py leaves them, or "
            f"{SWEEP}, or folders with these."
        )
    return list(runs.values())


def _inside(folder: Path, depth: int) -> Iterator[Path]:
    """Run folders below a folder; a run's own folders are not looked into, nor hidden ones."""
    for child in folder.iterdir():
        if not child.is_dir() or child.name.startswith("."):
            continue
        if is_run(child):
            yield child
        elif depth > 1:
            yield from _inside(child, depth - 1)


def _plan(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The rows of sweep.json by the names of their cells; none without the file."""
    path = folder / SWEEP
    if not path.is_file():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {str(row["cell"]): dict(row) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise BimbaError(
            f"{path} is not the list of a sweep's cells ({type(error).__name__}: {error}); remove it to report the "
            "runs beside it."
        ) from error


def _named(runs: list[Found]) -> list[Found]:
    """With the part of each path that tells it from the others."""
    if len(runs) == 1:
        return [replace(runs[0], name=runs[0].folder.resolve().name)]
    common = os.path.commonpath([run.folder.resolve() for run in runs])
    return [replace(run, name=run.folder.resolve().relative_to(common).as_posix()) for run in runs]


def _natural(path: Path) -> tuple[Any, ...]:
    """Hydra numbers its runs: 2 comes before 10."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in path.parts)
