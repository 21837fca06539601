"""Files of an earlier evaluation in the same folder that the next one would not write over.

Only what an evaluation of ours has written: its ``summary.json`` says which tasks it had.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from pathlib import Path

from bimba.report.page import PICTURES


def earlier_tasks(folder: Path) -> list[str]:
    """Those of the evaluation that ``summary.json`` is of; none if there is no such file of ours."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    frames = summary.get("frames") if isinstance(summary, dict) else None
    return list(frames) if isinstance(frames, dict) else []


def remove_samples(folder: Path, kept: Container[str]) -> None:
    """The answers of earlier tasks, but for some."""
    for task in earlier_tasks(folder):
        if task not in kept:
            (folder / "samples" / f"{task}.json").unlink(missing_ok=True)


def remove_pictures(folder: Path) -> None:
    """All plots and frames of the earlier report."""
    tasks = earlier_tasks(folder)
    if not tasks:
        return
    names = "|".join(map(re.escape, tasks))
    ours = re.compile(rf"overview\.png|({names})(\.png|-\d+-\d+\.jpg)")  # as bimba.report.page names them
    for path in (folder / PICTURES).glob("*"):
        if ours.fullmatch(path.name):
            path.unlink()
