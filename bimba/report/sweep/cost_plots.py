"""Plots of what a sweep's runs take and of how they learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bimba.report.sweep.costs import COSTS, Frontier, digits, mean, values
from bimba.report.sweep.group import Group
from bimba.report.sweep.plots import LIMITS, task_name
from bimba.report.sweep.style import (
    FAINT,
    Picture,
    drawing,
    guessing,
    guessing_entry,
    legend,
    looks,
    panels,
    plain_axis,
    rows,
)
from bimba.report.sweep.summary import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = ("train_seconds", "ms_per_video", "tokens_per_second", "peak_memory_mib", "gpu_peak_memory_mib")
SMOOTHED = 40  # a point of a curve is the mean over this part of the run
WIDE = 8.0  # prices that differ more than so many times are on a logarithmic axis


def frontier_plot(sweep: Sweep, found: Sequence[Frontier]) -> Picture | None:
    """Accuracy against each price, a row for each task; what no other label beats in both is connected."""
    from matplotlib.lines import Line2D

    if not found:
        return None
    own = looks(group.label.name for group in sweep.groups)
    across = len({one.cost.name for one in found})
    with drawing():
        figure, parts = panels(len(found), 3.5, 3.0, most=across)
        for axes, one in zip(parts, found):
            for label, price, score in one.points:
                look, e = own[label.name], score.estimate
                axes.errorbar(
                    *(price, 100 * e.mean, [[100 * (e.mean - e.low)], [100 * (e.high - e.mean)]]),
                    color=look.colour, marker=look.marker, linestyle="",
                    markersize=7, elinewidth=1.2, capsize=2, zorder=3,
                )  # fmt: skip
            best = [next(point for point in one.points if point[0] == label) for label in one.best]
            x, y = [price for _, price, _ in best], [100 * score.estimate.mean for *_, score in best]
            axes.plot(x, y, color=FAINT, linewidth=1.4, drawstyle="steps-post", zorder=1)
            guessing(axes, one.points[0][2].chance)
            prices = [price for _, price, _ in one.points]
            if max(prices) > WIDE * min(prices) > 0:
                plain_axis(axes, prices, log=True)
                axes.margins(x=0.1)
            else:
                axes.set_xlim(0, 1.08 * max(prices))
            unit = f" ({one.cost.unit})" if one.cost.unit else ""
            axes.set(title=task_name(one.task), xlabel=f"{_within(one.cost.title)}{unit}", ylim=LIMITS)
            axes.set_ylabel("questions answered rightly (%)")
        frontier = Line2D([], [], color=FAINT, linewidth=1.4, label="frontier")
        legend(figure, own, [frontier, guessing_entry()], lines=False)
    told = "; ".join(
        f"{task_name(one.task)} against {_within(one.cost.title)}: {', '.join(label.name for label in one.best)}"
        for one in found
    )
    title = f"Cost against accuracy (evaluation {sweep.primary})"
    return Picture("frontier", title, f"On the frontier: {told}", figure)


def cost_plot(sweep: Sweep) -> Picture | None:
    """Time, speed and memory of each label."""
    shown = [cost for cost in COSTS if cost.name in SHOWN and any(values(sweep, g, cost) for g in sweep.groups)]
    if not shown:
        return None
    names = [group.label.name for group in sweep.groups]
    own = looks(names)
    with drawing():
        figure, parts = rows(len(shown), 3.4, names, most=2)
        for axes, cost in zip(parts, shown):
            largest = max(value for group in sweep.groups for value in values(sweep, group, cost))
            for y, group in enumerate(sweep.groups):
                middle = mean(sweep, group, cost)
                if middle is not None:
                    axes.barh(y, middle, color=own[group.label.name].colour, height=0.55, alpha=0.85)
                    ends = values(sweep, group, cost)
                    axes.plot([min(ends), max(ends)], [y, y], color="black", linewidth=1.4)
                    axes.text(max(ends) + 0.02 * largest, y, digits(middle), va="center", fontsize=9)
            axes.set(title=cost.title, xlabel=_unit(cost.unit), xlim=(0, 1.22 * largest))
            axes.locator_params(axis="x", nbins=4)
    told = "; ".join(
        f"{cost.title}: "
        + ", ".join(f"{g.label.name} {digits(m)} {cost.unit}" for g in sweep.groups if (m := mean(sweep, g, cost)))
        for cost in shown
    )
    return Picture("costs", "Time, speed and memory: mean over the seeds, from least to most", told, figure)


def curve_plot(sweep: Sweep) -> Picture | None:
    """Loss while training, smoothed, and validation where there was some; each seed thin, their mean bold."""
    wanted = (("train/loss", "training loss (nats per token)"), ("val/loss", "validation loss (nats per token)"),
              ("val/accuracy", "answer tokens right (%)"))  # fmt: skip
    shown = [(key, text) for key, text in wanted if any(key in cell.curves for cell in sweep.cells)]
    if not shown:
        return None
    own = looks(group.label.name for group in sweep.groups)
    with drawing():
        figure, parts = panels(len(shown), 4.2, 3.3)
        for axes, (key, text) in zip(parts, shown):
            scale = 100.0 if key == "val/accuracy" else 1.0
            lowest = np.inf
            for group in sweep.groups:
                look = own[group.label.name]
                runs = [smoothed(cell.curves[key]) for cell in group.cells if key in cell.curves]
                for steps, line in runs:
                    lowest = min(lowest, float(np.min(line)))
                    axes.plot(steps, scale * line, color=look.colour, linewidth=0.7, alpha=0.35)
                if runs:
                    steps, line = mean_curve(runs)
                    axes.plot(
                        *(steps, scale * line),
                        color=look.colour, linewidth=1.8, linestyle=look.line,
                        marker=look.marker, markersize=5, markevery=max(1, len(steps) // 6),
                    )  # fmt: skip
            axes.set(title=key, xlabel="optimizer step", ylabel=text)
            if key.endswith("loss") and lowest > 0:
                _log_losses(axes)
        legend(figure, own)
    told = ", ".join(f"{group.label.name} {_last(group)}" for group in sweep.groups)
    return Picture("loss", "Loss while training", f"Last training losses, smoothed: {told}", figure)


def smoothed(curve: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the running mean around each, over a fortieth of the run; at the ends over what there is."""
    steps, line = np.array([step for step, _ in curve]), np.array([value for _, value in curve])
    half = len(line) // SMOOTHED // 2
    sums = np.concatenate([[0.0], np.cumsum(line)])
    first = np.maximum(np.arange(len(line)) - half, 0)
    last = np.minimum(np.arange(len(line)) + half + 1, len(line))
    return steps, (sums[last] - sums[first]) / (last - first)


def mean_curve(runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of several curves at the steps that all of them have."""
    steps = runs[0][0]
    for others, _ in runs[1:]:
        steps = np.intersect1d(steps, others)
    return steps, np.mean([line[np.isin(own, steps)] for own, line in runs], axis=0)


def _last(group: Group) -> str:
    runs = [smoothed(cell.curves["train/loss"]) for cell in group.cells if "train/loss" in cell.curves]
    return f"{np.mean([line[-1] for _, line in runs]):.2f}" if runs else "unknown"


def _log_losses(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _within(title: str) -> str:
    """A title within a sentence; "Peak GPU memory" keeps its capitals."""
    return title[0].lower() + title[1:]


def _unit(unit: str) -> str:
    return {"/s": "tokens per second", "s": "seconds", "ms": "milliseconds"}.get(unit, unit)
