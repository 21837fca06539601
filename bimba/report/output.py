"""The files of an evaluation, but for the journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bimba.report.evaluation import Evaluation
from bimba.report.files import results_in, write_json
from bimba.report.measures import by_document
from bimba.report.page import write_report
from bimba.report.stale import remove_pictures, remove_samples
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

    Questions stand in the order of the data set and metrics in that of their names: the harness's own order depends on
    the number of processes. Files of an earlier run of other tasks are removed.

    Args:
        default: as for ``json.dumps``.

    Raises:
        BimbaError: the folder cannot be written.
    """
    with results_in(folder):
        remove_samples(folder, kept=results["samples"])
        for task, samples in results["samples"].items():
            content = {"task": task, "samples": by_document(samples)}
            write_json(folder / "samples" / f"{task}.json", content, default)
        without_samples = {key: value for key, value in results.items() if key != "samples"}
        metrics = {task: dict(sorted(found.items())) for task, found in results["results"].items()}
        write_json(folder / "results.json", {**without_samples, "results": metrics}, default)


def write_evaluation(folder: Path, evaluation: Evaluation, **more: Any) -> None:
    """Prints the scores, and writes ``summary.json``, ``summary.md``, ``report.html`` and ``report.md``.

    Args:
        more: goes to ``summary.json`` too.

    Raises:
        BimbaError: the folder cannot be written.
    """
    with results_in(folder):
        remove_pictures(folder)
        _write_summary(folder, evaluation, more)
    write_report(folder, evaluation)


def _write_summary(folder: Path, evaluation: Evaluation, more: Mapping[str, Any]) -> None:
    write_json(folder / "summary.json", {**evaluation.summary(), **more})
    title = f"{evaluation.run.benchmark}: {evaluation.run.checkpoint}"
    scores, published = score_rows(evaluation.scores), published_rows(evaluation.published)
    write_markdown(folder / "summary.md", title, SCORE_COLUMNS, scores)
    print_table(title, SCORE_COLUMNS, scores)
    if published:
        with (folder / "summary.md").open("a", encoding="utf-8") as file:
            file.write("\n" + markdown_table(PUBLISHED_COLUMNS, published))
        print_table("Beside the published numbers", PUBLISHED_COLUMNS, published)
