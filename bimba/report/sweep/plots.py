"""Plots of a sweep's accuracies: all labels, and against frames, compression and the length of the needle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from bimba.report.sweep.label import COMPRESSION, FRAMES, Label
from bimba.report.sweep.scores import Score
from bimba.report.sweep.statistics import Estimate
from bimba.report.sweep.style import (
    FAINT,
    Look,
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
    from matplotlib.artist import Artist

Point = tuple[float, Estimate]
Lines = dict[str, list[Point]]  # name of a line -> its points
LIMITS = (-3, 103)  # percent; marks at 0 and 100 are whole


def accuracy_plot(sweep: Sweep) -> Picture | None:
    """Every label in every task of the primary evaluation, each seed as a faint dot."""
    tasks = [task for task in sweep.tasks if sweep.of(task, sweep.primary)]
    if not tasks:
        return None
    names = [group.label.name for group in sweep.groups]
    own = looks(names)
    with drawing():
        figure, parts = rows(len(tasks), 3.6, names)
        for axes, task in zip(parts, tasks):
            for score in sweep.of(task, sweep.primary):
                y, look, one = names.index(score.label.name), own[score.label.name], score.estimate
                axes.plot([100 * one.low, 100 * one.high], [y, y], color=look.colour, linewidth=2.2, zorder=2)
                if one.seeds > 1:
                    seeds = [100 * value for value in one.by_seed]
                    axes.plot(seeds, [y + 0.27] * one.seeds, ".", color=look.colour, alpha=0.7, markersize=4, zorder=2)
                axes.plot(100 * one.mean, y, look.marker, color=look.colour, markersize=7, zorder=3)
            guessing(axes, sweep.of(task, sweep.primary)[0].chance, upright=True)
            axes.set(title=task_name(task), xlabel="questions answered rightly (%)", xlim=LIMITS)
        legend(figure, {}, [guessing_entry(), _seed_entry()])
    return Picture(
        "accuracy",
        f"Accuracy with 95 % intervals (evaluation {sweep.primary})",
        "; ".join(f"{task_name(task)}: {_said(sweep.of(task, sweep.primary))}" for task in tasks),
        figure,
    )


def frames_plot(sweep: Sweep) -> Picture | None:
    """Against the number of frames read of a video; None unless there are several.

    A line is one model, or models that were each trained with as many frames as are read, which its name says.
    """
    first: dict[tuple[str, str, int | None], Score] = {}
    for score in sweep.scores:  # those of the primary evaluation first: another of as many frames asks something else
        first.setdefault((score.label.name, score.task, score.num_frames), score)
    apart = {score.label.without(FRAMES) for score in first.values() if not _is_read_as_trained(score)}

    def line_of(label: Label) -> str:
        line = label.without(FRAMES)
        return label.name if line in apart or line == label.name else f"{line} (trained with as many)"

    found = _by_axis(list(first.values()), lambda score: score.num_frames, line_of)
    title = "Accuracy against the number of frames"
    return _lines(sweep, "frames", title, found, line_of, "frames of each video", log=True)


def compression_plot(sweep: Sweep) -> Picture | None:
    """Against the compression, in the primary evaluation; None unless there are several.

    Labels that differ in it alone are a line, unless two of them compress as much.
    """
    ratios = {group.label: group.compression for group in sweep.groups}
    points = Counter((label.without(COMPRESSION), ratio) for label, ratio in ratios.items() if ratio is not None)
    apart = {line for (line, _), count in points.items() if count > 1}

    def line_of(label: Label) -> str:
        line = label.without(COMPRESSION)
        return label.name if line in apart else line

    scores = [score for score in sweep.scores if score.evaluation == sweep.primary]
    found = _by_axis(scores, lambda score: ratios[score.label], line_of)
    title = f"Accuracy against compression (evaluation {sweep.primary})"
    x_label = "patch tokens per visual token"
    return _lines(sweep, "compression", title, found, line_of, x_label, log=True)


def length_plot(sweep: Sweep) -> Picture | None:
    """Against the length of the needle, in the primary evaluation; None unless there are several."""
    found: dict[str, Lines] = {}
    for task in sweep.tasks:
        lines = {
            score.label.name: [(float(length), one) for length, one in score.by_length.items()]
            for score in sweep.of(task, sweep.primary)
            if score.by_length
        }
        if lines:
            found[task] = lines
    title = f"Accuracy against the length of the needle (evaluation {sweep.primary})"
    x_label = "frames for which the shortest needle is visible"
    return _lines(sweep, "needle_length", title, found, lambda label: label.name, x_label, log=False)


def task_name(task: str) -> str:
    return task.removeprefix("bimba_")


def _is_read_as_trained(score: Score) -> bool:
    """Whether videos have as many frames as the label says that its models were trained with, if it says so."""
    trained = [value for key, value in score.label.settings if key.rpartition(".")[2] in FRAMES]
    return all(value == str(score.num_frames) for value in trained)


def _by_axis(
    scores: Sequence[Score], position: Callable[[Score], float | None], line_of: Callable[[Label], str]
) -> dict[str, Lines]:
    """For each task the lines, by their names."""
    found: dict[str, Lines] = {}
    for score in scores:
        x = position(score)
        if x is not None:
            points = found.setdefault(score.task, {}).setdefault(line_of(score.label), [])
            points.append((float(x), score.estimate))
    return {
        task: {name: sorted(points, key=lambda p: p[0]) for name, points in of.items()} for task, of in found.items()
    }


def _lines(
    sweep: Sweep,
    name: str,
    title: str,
    found: Mapping[str, Lines],
    line_of: Callable[[Label], str],
    x_label: str,
    log: bool,
) -> Picture | None:
    """A panel for each task; lines stand a little apart, so that their intervals do."""
    places = sorted({x for lines in found.values() for points in lines.values() for x, _ in points})
    if len(places) < 2:
        return None
    own = _looks_of(sweep, found, line_of)
    step = (places[-1] - places[0]) / 90
    with drawing():
        figure, parts = panels(len(found), 3.7, 3.3)
        for axes, (task, lines) in zip(parts, found.items()):
            for line, points in lines.items():
                aside = list(own).index(line) - (len(own) - 1) / 2
                x = [at * 1.018**aside if log else at + step * aside for at, _ in points]
                y = [100 * one.mean for _, one in points]
                low_high = [[100 * (e.mean - e.low) for _, e in points], [100 * (e.high - e.mean) for _, e in points]]
                look = own[line]
                axes.errorbar(
                    *(x, y, low_high),
                    color=look.colour, marker=look.marker, linestyle=look.line,
                    markersize=6, linewidth=1.6, elinewidth=1.2, capsize=2,
                )  # fmt: skip
            chances = [score.chance for score in sweep.scores if score.task == task]
            guessing(axes, sum(chances) / len(chances))
            axes.set(title=task_name(task), xlabel=x_label, ylabel="questions answered rightly (%)", ylim=LIMITS)
            plain_axis(axes, places, log)
        legend(figure, own, [guessing_entry()])
    told = "; ".join(
        f"{task_name(task)}, {line}: " + ", ".join(f"{100 * one.mean:.0f} % at {at:g}" for at, one in points)
        for task, lines in found.items()
        for line, points in lines.items()
    )
    return Picture(name, title, told, figure)


def _looks_of(sweep: Sweep, found: Mapping[str, Lines], line_of: Callable[[Label], str]) -> dict[str, Look]:
    """A label keeps its look in all plots; lines that stand for several labels have that of their first."""
    of_labels = looks(group.label.name for group in sweep.groups)
    first: dict[str, Look] = {}
    for group in sweep.groups:
        first.setdefault(line_of(group.label), of_labels[group.label.name])
    return {line: first[line] for lines in found.values() for line in lines}


def _seed_entry() -> Artist:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=FAINT, marker=".", linestyle="", markersize=5, label="one seed")


def _said(scores: Sequence[Score]) -> str:
    return ", ".join(f"{score.label.name} {100 * score.estimate.mean:.0f} %" for score in scores)
