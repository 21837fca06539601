"""From what the harness returned to an evaluation; each task by itself, so that one that failed fails alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bimba.report.accuracy import compare, harness_scores
from bimba.report.evaluation import Evaluation, Run, Task
from bimba.report.examples import examples
from bimba.report.measures import Measure, breakdown, measures, tries
from bimba.types import BimbaError


def examine(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], run: Run) -> Evaluation:
    """Reads what ``lmms_eval.evaluator.simple_evaluate`` returned (with its samples).

    A task without a result, or with one that does not fit its own answers, fails alone: :attr:`Task.failed` says why.

    Args:
        rows: files of ``conf/benchmark``: tasks, metric, chance, published, categories.
    """
    return Evaluation(
        run, [_task(results, name, row, run) for row in rows for name in _single_tasks(results, row["tasks"])]
    )


def _lenient(found: Sequence[Measure]) -> Measure | None:
    """The metric over all questions that reads answers leniently, if the task has one."""
    over_questions = [measure for measure in found if "lenient" in measure.metric and measure.over == "questions"]
    return max(over_questions, key=lambda measure: measure.n, default=None)


def _single_tasks(results: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Tasks, and the members of groups, which only the harness knows."""
    found = []
    for name in names:
        members = results.get("group_subtasks", {}).get(name)
        found += _single_tasks(results, members) if members else [name]
    return found


def _task(results: Mapping[str, Any], name: str, row: Mapping[str, Any], run: Run) -> Task:
    samples = results.get("samples", {}).get(name, [])
    asked = run.asked.get(name, {})
    num_frames = next((num for _, _, num in asked.values()), None)
    metric = row["metric"]
    try:
        if not samples:
            raise BimbaError(f"The harness returned no answers for task {name!r}; its log says why.")
        score = None if metric is None else harness_scores(results, metric, row["chance"], [name])[0]
        found = measures(results, name)
        of = {measure.metric: measure for measure in found}
        published = None
        if (entry := row["published"].get(name)) is not None:
            published = compare(results, name, **entry) | {"found_num_frames": num_frames, "low": None, "high": None}
            measure = of.get(entry["metric"])
            if measure is not None and measure.low is not None and measure.high is not None:
                published |= {"low": 100 * measure.low, "high": 100 * measure.high}
    except BimbaError as error:
        return Task(name, num_frames=num_frames, failed=str(error))
    by_category, remark = {}, ""
    try:
        if metric is not None:
            by_category = breakdown(samples, metric, row["categories"])
    except BimbaError as error:  # a data set that has changed costs its plot, not the score
        remark = str(error)
    return Task(
        name,
        score,
        published,
        _lenient(found),
        found,
        by_category,
        next((counts for m in found if (counts := tries(samples, m.metric))), {}),
        num_frames,
        examples(name, samples, metric, asked, run.short_videos, run.unreadable),
        remark=remark,
    )
