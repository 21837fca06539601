"""``bimba report``: reads the runs, and writes everything about them into one folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bimba.report.accuracy import wilson_interval
from bimba.report.files import write_bytes, write_json
from bimba.report.sweep.cell import Cell, read_cell
from bimba.report.sweep.collect import find_runs
from bimba.report.sweep.configs import defaults_of
from bimba.report.sweep.costs import COSTS, frontiers
from bimba.report.sweep.label import Label
from bimba.report.sweep.notices import code_of
from bimba.report.sweep.page import PLOTS, Page, make_page, rendered
from bimba.report.sweep.statistics import Estimate
from bimba.report.sweep.style import Picture
from bimba.report.sweep.summary import Sweep, summarise
from bimba.types import BimbaError


def report(
    given: Sequence[str], out: Path, baseline: str = "pool", primary: str | None = None, command: str = ""
) -> tuple[Sweep, Page]:
    """Writes ``report.html``, ``report.md``, ``plots/``, ``cells.csv`` and ``report.json`` about some runs.

    Args:
        given: run folders, sweep folders, patterns: see ``collect.find_runs``.
        out: folder to write; files of an earlier report are replaced.
        baseline, primary: see ``summary.summarise``.
        command: as it stands at the end of the page.

    Raises:
        BimbaError: there are no such runs, none is finished, or the folder cannot be written.
    """
    sweep = summarise([read_cell(found) for found in find_runs(given)], baseline, primary)
    defaults, remark = defaults_of(dict.fromkeys(cell.compressor for cell in sweep.cells))
    page = make_page(sweep, defaults, remark, command)
    try:
        for picture in page.pictures:
            for kind in Picture.KINDS:
                write_bytes(out / PLOTS / f"{picture.name}.{kind}", picture.drawn(kind))
        for name, text in rendered(page).items():
            write_bytes(out / name, text.encode())
        write_bytes(out / "cells.csv", _csv(cell_rows(sweep)).encode())
        write_json(out / "report.json", as_json(sweep, page))
    except OSError as error:
        raise BimbaError(f"The report cannot be written to {out} ({error.strerror or error}).") from error
    return sweep, page


def cell_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """A row for each cell, evaluation and task, and one for a cell without any."""
    rows = []
    for group in sweep.groups:
        for cell in group.cells:
            about = _about(cell, group.label, sweep)
            asked = [(name, task, of) for name, one in cell.evaluations.items() for task, of in one.tasks.items()]
            for name, task, answers in asked:
                right, n = sum(answers.right.values()), len(answers.right)
                low, high = wilson_interval(right, n)
                scores = {"accuracy": right / n, "low": low, "high": high, "chance": answers.chance, "questions": n}
                where = {"evaluation": name, "task": task, "num_frames": answers.num_frames}
                rows.append({**about, **where, **scores})
            if not asked:
                rows.append(about)
    rows += [
        {"cell": c.name, "folder": str(c.folder), "status": c.status, "reason": c.reason, "seed": c.seed}
        for c in sweep.others
    ]
    return rows


def as_json(sweep: Sweep, page: Page) -> dict[str, Any]:
    """All numbers of the page."""
    return {
        "primary_evaluation": sweep.primary,
        "baseline": sweep.baseline,
        "notices": page.notices,
        "scores": [
            {
                "label": score.label.name,
                "evaluation": score.evaluation,
                "task": score.task,
                "num_frames": score.num_frames,
                "chance": score.chance,
                **_estimate(score.estimate, list(score.answers)),
                "by_needle_frames": {str(n): _estimate(one, list(score.answers)) for n, one in score.by_length.items()},
            }
            for score in sweep.scores
        ],
        "comparisons": [
            {
                "label": one.label.name,
                "baseline": one.baseline.name,
                "evaluation": one.evaluation,
                "task": one.task,
                **_estimate(one.estimate),
            }
            for one in sweep.comparisons
        ],
        "frontiers": [
            {"task": one.task, "cost": one.cost.name, "labels": [label.name for label in one.best]}
            for one in frontiers(sweep)
        ],
        "cells": cell_rows(sweep),
    }


def _about(cell: Cell, label: Label, sweep: Sweep) -> dict[str, Any]:
    return {
        **{"cell": cell.name, "folder": str(cell.folder), "status": cell.status, "reason": cell.reason},
        **{"label": label.name, "compressor": label.compressor, "seed": cell.seed},
        **dict(label.settings),
        "code": code_of(cell),
        "compression": cell.compression,
        **{cost.name: cost.of(cell, sweep.primary) for cost in COSTS},
    }


def _estimate(one: Estimate, seeds: Sequence[str] = ()) -> dict[str, Any]:
    by_seed: Any = dict(zip(seeds, one.by_seed)) if seeds else list(one.by_seed)
    return {
        **{"mean": one.mean, "low": one.low, "high": one.high},
        **{"seeds": one.seeds, "questions": one.questions, "interval_over": one.over, "by_seed": by_seed},
    }


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
