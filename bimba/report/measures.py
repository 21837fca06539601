"""All that a task reports of its answers: each metric with a 95 % interval, and the same by category.

Tasks record a question's score in several ways, and average over questions, over types of question, or over questions
that were tried several times. Which of these a metric is, is found by counting: the way that gives the harness's own
number. A metric that no way of counting gives has no interval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bimba.report.accuracy import TaskScore, score, wilson_interval
from bimba.types import BimbaError

Sample = Mapping[str, Any]  # a question as the harness records it: doc, filtered_resps, and a key for each metric
Count = tuple[float, int]  # what was right, of how many

SUFFIX = ",none"  # the harness's mark of a metric without a filter
TYPES = ("type", "task_type")
ANSWERS = ("pred_answer", "parsed_pred")


@dataclass(frozen=True)
class Measure:
    """One metric of one task.

    Attributes:
        value: as the harness reports it.
        fraction: the same as a fraction of 1; None for what is not a share of the questions.
        low, high: the 95 % interval of the fraction; None where no way of counting gives the value.
        n: what was counted: questions, or groups of tries.
        over: "questions", "types" or "tries": what the value is the mean over.
    """

    metric: str
    value: float
    fraction: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    over: str | None = None


def by_document(samples: Sequence[Sample]) -> list[Sample]:
    """In the order of the data set, whatever the number of processes that answered."""
    return sorted(samples, key=lambda sample: sample["doc_id"])


def measures(results: Mapping[str, Any], task: str) -> list[Measure]:
    """Every metric of a task in what ``lmms_eval.evaluator.simple_evaluate`` returned (with its samples).

    In the order of their names: the harness's own depends on the number of processes.
    """
    found = results["results"].get(task, {})
    values = {
        key.removesuffix(SUFFIX): float(value)
        for key, value in found.items()
        if key.endswith(SUFFIX) and "_stderr" not in key and isinstance(value, int | float)
    }
    return [_measure(metric, value, results["samples"].get(task, [])) for metric, value in sorted(values.items())]


def question_score(record: Any) -> float | None:
    """How right an answer is, from 0 to 1, by what a sample holds for a metric; None if that does not say."""
    if isinstance(record, bool | int | float):
        return float(record)
    if not isinstance(record, Mapping):
        return None
    for key in ("score", "correct"):
        if isinstance(record.get(key), bool | int | float):
            return float(record[key])
    given = [record[key] for key in ANSWERS if key in record]
    return float(given[0] == record["answer"]) if given and "answer" in record else None


def breakdown(samples: Sequence[Sample], metric: str, columns: Sequence[str]) -> dict[str, list[TaskScore]]:
    """Accuracy by category.

    Args:
        metric: 0 or 1 for each question.
        columns: of the data set. A list in one of them counts for each of its members.

    Returns:
        For each column its categories, in the order of numbers, or else of the data set. The chance of a category is
        not known, and 0.

    Raises:
        BimbaError: a data set without the column.
    """
    found = {}
    for column in columns:
        scores: dict[str, list[float]] = {}
        for sample in by_document(samples):
            if column not in sample["doc"]:
                raise BimbaError(
                    f"The data set has no column {column!r}; expected one of {', '.join(sample['doc'])}. "
                    "conf/benchmark/ names them under `categories`."
                )
            value = question_score(sample.get(metric))
            if value is not None:
                for name in _names(sample["doc"][column]):
                    scores.setdefault(name, []).append(value)
        names = sorted(scores, key=float) if scores and all(map(_is_number, scores)) else list(scores)
        found[column] = [score(name, round(sum(scores[name])), len(scores[name]), 0.0) for name in names]
    return found


def tries(samples: Sequence[Sample], metric: str) -> dict[int, int]:
    """Of questions that were asked several times: how many had 0, 1, 2, ... right answers. Empty if none was."""
    groups: dict[Hashable, list[float]] = {}
    for sample in samples:
        record = sample.get(metric)
        if isinstance(record, Mapping) and "group" in record and (value := question_score(record)) is not None:
            groups.setdefault(record["group"], []).append(value)
    counts = Counter(round(sum(scores)) for scores in groups.values())
    most = max(map(len, groups.values()), default=0)
    return {right: counts[right] for right in range(most + 1)} if groups else {}


def interval_of_mean(counts: Sequence[Count]) -> tuple[float, float]:
    """95 % interval of the mean of several shares, each of questions of its own.

    Of one share it is Wilson's. Of several, Wilson's intervals are put together as independent ones (Zou and Donner's
    "method of variance estimates recovery", 2008).

    Raises:
        BimbaError: a share of nothing.
    """
    bounds = [(right / n, *wilson_interval(round(right), n)) for right, n in counts]
    mean = sum(p for p, _, _ in bounds) / len(bounds)
    below = math.sqrt(sum((p - low) ** 2 for p, low, _ in bounds)) / len(bounds)
    above = math.sqrt(sum((high - p) ** 2 for p, _, high in bounds)) / len(bounds)
    return max(0.0, mean - below), min(1.0, mean + above)  # a rounding error below 0 would be shown as -0.0


def _measure(metric: str, value: float, samples: Sequence[Sample]) -> Measure:
    records = [sample[metric] for sample in samples if metric in sample]
    scores = [right for record in records if (right := question_score(record)) is not None]
    if not scores or len(scores) < len(records):
        return Measure(metric, value)
    for over, counts in _ways_of_counting(records, scores):
        mean = sum(right / n for right, n in counts) / len(counts)
        total = sum(right for right, _ in counts)
        # Some tasks round their number to five digits; those of what could not be read are how many, not which share.
        is_count = over == "questions" and value == total
        if is_count or math.isclose(value, mean, abs_tol=1e-5) or math.isclose(value, 100 * mean, abs_tol=1e-3):
            n = sum(n for _, n in counts)
            if not set(scores) <= {0.0, 1.0}:  # a mean of something else, such as the chance of guessing
                return Measure(metric, value, mean, n=n, over=over)
            return Measure(metric, value, mean, *interval_of_mean(counts), n, over)
    return Measure(metric, value)


def _ways_of_counting(records: Sequence[Any], scores: Sequence[float]) -> list[tuple[str, list[Count]]]:
    """What a metric may be the mean of, the likelier first: shares of what was right."""
    over_questions = ("questions", [(sum(scores), len(scores))])
    if not all(isinstance(record, Mapping) for record in records):
        return [over_questions]
    types = [next((record[key] for key in TYPES if key in record), None) for record in records]
    if all("group" in record for record in records):
        groups: dict[tuple[Any, Any], list[float]] = {}
        for record, kind, value in zip(records, types, scores):
            groups.setdefault((kind, record["group"]), []).append(value)
        most = max(map(len, groups.values()))
        all_right = _gathered((kind, len(tries) == most == sum(tries)) for (kind, _), tries in groups.items())
        return [("tries", all_right)]
    if None in types:
        return [over_questions]
    return [("types", _gathered(zip(types, scores))), over_questions]


def _gathered(scores: Iterable[tuple[Any, float]]) -> list[Count]:
    """Of each type, what was right and of how many."""
    of_types: dict[Any, list[float]] = {}
    for kind, value in scores:
        of_types.setdefault(kind, []).append(value)
    return [(sum(values), len(values)) for values in of_types.values()]


def _names(value: Any) -> list[str]:
    return [str(member) for member in value] if isinstance(value, list | tuple) else [str(value)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
