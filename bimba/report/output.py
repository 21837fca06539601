"""The files of an evaluation, but for the journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bimba.report.evaluation import Evaluation
from bimba.report.files import write_json
from bimba.report.page import write_report
from bimba.report.table import (
    PUBLISHED_COLUMNS,
    SCORE_COLUMNS,
    markdown_table,
    print_table,
    published_rows,
    score_rows,
    write_markdown,
)


def write_answers(folder: Path, results: Mapping[str, Any], default: Callable[[Any], Any]) -> None:
    """What the harness returned: ``results.json``, and every question with its answer in ``samples/``.

    Args:
        default: as for ``json.dumps``.
    """
    for task, samples in results["samples"].items():
        write_json(folder / "samples" / f"{task}.json", {"task": task, "samples": samples}, default)
    without_samples = {key: value for key, value in results.items() if key != "samples"}
    write_json(folder / "results.json", without_samples, default)


def write_evaluation(folder: Path, evaluation: Evaluation, **more: Any) -> None:
    """Prints the scores, and writes ``summary.json``, ``summary.md``, ``report.html`` and ``report.md``.

    Args:
        more: goes to ``summary.json`` too.
    """
    write_json(folder / "summary.json", {**evaluation.summary(), **more})
    title = f"{evaluation.run.benchmark}: {evaluation.run.checkpoint}"
    scores, published = score_rows(evaluation.scores), published_rows(evaluation.published)
    write_markdown(folder / "summary.md", title, SCORE_COLUMNS, scores)
    print_table(title, SCORE_COLUMNS, scores)
    if published:
        with (folder / "summary.md").open("a", encoding="utf-8") as file:
            file.write("\n" + markdown_table(PUBLISHED_COLUMNS, published))
        print_table("Beside the published numbers", PUBLISHED_COLUMNS, published)
    write_report(folder, evaluation)
