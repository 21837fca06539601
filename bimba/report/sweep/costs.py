"""What each label of a sweep takes, and which labels no other beats in both cost and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bimba.report.sweep.cell import Cell
from bimba.report.sweep.group import Group
from bimba.report.sweep.label import Label
from bimba.report.sweep.scores import Score
from bimba.report.sweep.statistics import pareto
from bimba.report.sweep.summary import Sweep


@dataclass(frozen=True)
class Cost:
    """Something to be measured of each cell.

    Attributes:
        unit: with a blank before it, or empty.
        of: the value of a cell, with the primary evaluation's name; None if the cell does not say.
        is_time: whether it is time, or something per time, and not a size.
        is_price: whether less is better, so that it can be weighed against accuracy.
    """

    name: str
    title: str
    unit: str
    of: Callable[[Cell, str], float | None]
    is_time: bool
    is_price: bool = True


def _evaluation_seconds(cell: Cell, _: str) -> float | None:
    seconds = cell.record.get("evaluation_seconds") or {}
    return float(sum(seconds.values())) if seconds else None


def _ms_per_video(cell: Cell, primary: str) -> float | None:
    return cell.evaluations[primary].ms_per_video if primary in cell.evaluations else None


def _part(group: str, name: str) -> Callable[[Cell, str], float | None]:
    def value(cell: Cell, _: str) -> float | None:
        found = (cell.record.get(group) or {}).get(name)
        return None if found is None else float(found)

    return value


COSTS = (
    Cost("train_seconds", "Training", "s", lambda cell, _: cell.number("train_seconds"), is_time=True),
    Cost("evaluation_seconds", "Evaluations", "s", _evaluation_seconds, is_time=True, is_price=False),
    Cost("ms_per_video", "Encoding a video", "ms", _ms_per_video, is_time=True),
    Cost(
        *("tokens_per_second", "Compressor tokens", "/s", lambda cell, _: cell.number("tokens_per_second")),
        is_time=True,
        is_price=False,
    ),
    Cost("peak_memory_mib", "Peak memory", "MiB", lambda cell, _: cell.number("peak_memory_mib"), is_time=False),
    Cost(
        *("gpu_peak_memory_mib", "Peak GPU memory", "MiB", lambda cell, _: cell.number("gpu_peak_memory_mib")),
        is_time=False,
    ),
    Cost("visual_tokens", "Visual tokens per video", "", _part("compression", "visual_tokens"), is_time=False),
    Cost(
        *("compressor_parameters", "Compressor parameters", "", _part("parameters", "compressor")),
        is_time=False,
        is_price=False,
    ),
    Cost("trained_parameters", "Trained parameters", "", _part("parameters", "trained"), is_time=False, is_price=False),
)


def values(sweep: Sweep, group: Group, cost: Cost) -> list[float]:
    """Of the cells of a label that say."""
    found = [cost.of(cell, sweep.primary) for cell in group.cells]
    return [value for value in found if value is not None]


def mean(sweep: Sweep, group: Group, cost: Cost) -> float | None:
    return group.mean(values(sweep, group, cost))


@dataclass(frozen=True)
class Frontier:
    """Cost and accuracy of each label in one task; ``best`` are those that none beats in both, cheapest first."""

    cost: Cost
    task: str
    points: list[tuple[Label, float, Score]]
    best: list[Label]


def frontiers(sweep: Sweep) -> list[Frontier]:
    """For each task of the primary evaluation and each price that differs between at least two labels."""
    found = []
    for task in sweep.tasks:
        scores = {score.label: score for score in sweep.of(task, sweep.primary)}
        for cost in COSTS:
            if cost.is_price and len(points := _points(sweep, cost, scores)) > 1 and len({p[1] for p in points}) > 1:
                best = pareto([price for _, price, _ in points], [score.estimate.mean for *_, score in points])
                found.append(Frontier(cost, task, points, [points[i][0] for i in best]))
    return found


def _points(sweep: Sweep, cost: Cost, scores: dict[Label, Score]) -> list[tuple[Label, float, Score]]:
    return [
        (group.label, price, scores[group.label])
        for group in sweep.groups
        if group.label in scores and (price := mean(sweep, group, cost)) is not None
    ]


def spread(numbers: Sequence[float]) -> str:
    """The mean, with the range where there are several."""
    if not numbers:
        return ""
    middle = digits(sum(numbers) / len(numbers))
    low, high = digits(min(numbers)), digits(max(numbers))
    return middle if low == high else f"{middle} ({low} to {high})"


def digits(value: float) -> str:
    """Three digits that count, and no powers of ten."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
