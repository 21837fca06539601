"""Accuracy with its 95 % interval, and the scores of a harness run as plain records."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bimba.types import BimbaError

Z_95 = 1.959963984540054  # 97.5 % point of the normal distribution


@dataclass(frozen=True)
class TaskScore:
    """Accuracy of one task, all as fractions of 1: ``low`` and ``high`` bound its 95 % Wilson interval."""

    task: str
    accuracy: float
    low: float
    high: float
    chance: float
    n: int


def wilson_interval(correct: float, n: float, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of ``correct`` right answers in ``n``; unlike ``p ± z·s`` it stays within [0, 1].

    Both may be fractions: an effective number of questions, for answers that are not independent.

    Raises:
        BimbaError: no questions, or more right answers than questions.
    """
    if n < 1 or not 0 <= correct <= n:
        raise BimbaError(f"Got {correct} right answers of {n} questions; expected n >= 1 and 0 <= right answers <= n.")
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n right answers a bound is exactly 0 or 1, from which rounding leaves it 1e-16 away, on either side.
    return 0.0 if p == 0 else max(0.0, centre - half_width), 1.0 if p == 1 else min(1.0, centre + half_width)


def score(task: str, correct: int, n: int, chance: float) -> TaskScore:
    """The record of a task in which ``correct`` of ``n`` answers are right."""
    low, high = wilson_interval(correct, n)
    return TaskScore(task, correct / n, low, high, chance, n)


def harness_scores(
    results: Mapping[str, Any], metric: str, chance: float | str, tasks: Collection[str] | None = None
) -> list[TaskScore]:
    """Scores of tasks in what ``lmms_eval.evaluator.simple_evaluate`` returned (with its samples).

    Counted from the harness's own per-question records and compared with its own aggregate, so that a task that was
    skipped or cut short cannot pass for a result.

    Args:
        metric: name of a metric that is 0 or 1 for each question.
        chance: accuracy of guessing, or the name of a metric that is that.
        tasks: which; None = all that the harness ran.

    Raises:
        BimbaError: no task, a task without the metric or without questions, or an aggregate that does not fit.
    """
    samples = results.get("samples", {})
    if not samples:
        raise BimbaError("The harness returned no answers: no task ran. Its log above says why.")
    scores = []
    for task in samples if tasks is None else tasks:
        rows = samples.get(task, [])
        aggregate = _metric(results, task, metric)
        if not rows or aggregate is None:
            raise BimbaError(
                f"The harness has {len(rows)} answers and no metric {metric!r} for task {task!r}; expected both. "
                "Its log above says why; the metric's name is set in conf/benchmark/."
            )
        correct = round(sum(float(row[metric]) for row in rows))
        if not math.isclose(aggregate, correct / len(rows), abs_tol=1e-6):
            raise BimbaError(
                f"Task {task!r}: the harness says {metric} = {aggregate}, but {correct} of its {len(rows)} answers are "
                "right; expected a metric that is 0 or 1 per question and averaged."
            )
        guessing = _metric(results, task, chance) if isinstance(chance, str) else chance
        if guessing is None:
            raise BimbaError(f"Task {task!r} has no metric {chance!r}, which conf/benchmark/ names as its chance.")
        scores.append(score(task, correct, len(rows), guessing))
    return scores


def compare(
    results: Mapping[str, Any], task: str, score: float, metric: str | None, num_frames: int
) -> dict[str, float | str | int | None]:
    """What was published for a task beside what the harness found, both from 0 to 100.

    Args:
        score: the published number.
        metric: the task's metric that it is, a fraction of 1; None = others know the answers, so nothing is found here.
        num_frames: frames of a video it was measured with.

    Returns:
        ``published``, ``metric``, ``num_frames`` and ``found``, which is None without a metric.

    Raises:
        BimbaError: the task did not run, or did not report the metric.
    """
    if not results.get("samples", {}).get(task):
        raise BimbaError(f"The harness returned no answers for task {task!r}; its log above says why.")
    found = None if metric is None else _metric(results, task, metric)
    if metric is not None and found is None:
        raise BimbaError(f"Task {task!r} has no metric {metric!r}, which conf/benchmark/ compares with the published.")
    return {
        "published": score,
        "metric": metric,
        "num_frames": num_frames,
        "found": None if found is None else 100 * found,
    }


def _metric(results: Mapping[str, Any], task: str, metric: str) -> float | None:
    return results.get("results", {}).get(task, {}).get(f"{metric},none")
