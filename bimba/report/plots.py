"""Plots of scores: points with their intervals, beside what was published and what guessing scores.

Marks differ in shape as well as in colour, and blue and orange are told apart by colour-blind people. In HTML a plot is
inline SVG whose ink is the page's text colour, so that it reads on light and dark alike.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bimba.report.accuracy import TaskScore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE = "#2E86C8", "#C77700"  # each at least 3:1 on white and on the dark page
INK = "#010203"  # stands for the text colour of the page
TAG = re.compile(r"<[^>]*>")  # in a category's own words, < and > are escaped
NAME = re.compile(r'(id="|href="#|url\(#)')
ROW_INCHES, WIDTH_INCHES = 0.27, 7.2
SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "text.parse_math": False,  # a dollar sign in a name begins no formula
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bimba",  # the same plot is the same bytes
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Row:
    """A score in the overview; all from 0 to 100, None where there is none."""

    label: str
    found: float | None
    low: float | None
    high: float | None
    published: float | None
    chance: float | None


class Plot:
    """A drawn figure.

    Attributes:
        name: for a file, without suffix.
        description: what it shows, for those who cannot see it.
    """

    def __init__(self, name: str, description: str, figure: Figure):
        self.name = name
        self.description = description
        self._figure = figure

    def png(self) -> bytes:
        """On white."""
        return self._saved("png", dpi=150, facecolor="white", bbox_inches="tight")

    def svg(self) -> str:
        """An element for a page, on whatever is behind it."""
        text = self._saved("svg", transparent=True, bbox_inches="tight", metadata={"Date": None}).decode()
        text = TAG.sub(lambda tag: self._for_page(tag[0]), text[text.index("<svg") :])
        return text.replace("<svg", f'<svg role="img" aria-label="{_attribute(self.description)}"', 1)

    def _for_page(self, tag: str) -> str:
        """A tag in the page's ink; names of parts are unique within a figure, not within a page."""
        return NAME.sub(rf"\g<1>{self.name}-", tag.replace(INK, "currentColor"))

    def _saved(self, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        with _style():
            self._figure.savefig(buffer, format=kind, **options)
        return buffer.getvalue()


def overview(rows: Sequence[Row]) -> Plot:
    """Every benchmark beside its published number."""
    with _style():
        figure, (axes,) = _figure([len(rows)])
        for y, row in enumerate(rows):
            if row.found is not None:
                _point(axes, y, row.found, row.low, row.high)
            if row.published is not None:
                axes.plot(
                    row.published, y, "D", color=ORANGE, markersize=7, markerfacecolor="none", markeredgewidth=1.6
                )
            if row.chance is not None:
                axes.plot(row.chance, y, "|", color=INK, markersize=11, markeredgewidth=1.4)
        _rows(axes, [row.label for row in rows], "% right", (-2, 102))
        _legend(axes)
    return Plot("overview", "Scores with 95 % intervals beside the published numbers; the table has them all.", figure)


def categories(task: str, breakdown: Mapping[str, Sequence[TaskScore]], tries: Mapping[int, int]) -> Plot | None:
    """Scores by category, a panel for each column of the data set, and how many tries at a question were right."""
    columns = {column: scores for column, scores in breakdown.items() if scores}
    if not columns and not tries:
        return None
    with _style():
        figure, panels = _figure([*(len(scores) for scores in columns.values()), *([len(tries)] if tries else [])])
        for axes, (column, scores) in zip(panels, columns.items()):
            for y, score in enumerate(scores):
                _point(axes, y, 100 * score.accuracy, 100 * score.low, 100 * score.high)
            _rows(axes, [f"{score.task} (n = {score.n})" for score in scores], "% right", (-2, 102))
            axes.set_title(column, loc="left", fontweight="bold")
        if tries:
            _tries(panels[-1], tries)
    return Plot(task, f"{task}: scores by category with 95 % intervals; the table has them all.", figure)


def _style() -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(SETTINGS)


def _figure(num_rows: Sequence[int]) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # without pyplot, which would look for a screen

    heights = [rows + 2.6 for rows in num_rows]
    figure = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * sum(heights)), layout="constrained")
    panels = figure.subplots(len(num_rows), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    return figure, list(panels[:, 0])


def _point(axes: Axes, y: float, value: float, low: float | None, high: float | None) -> None:
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=BLUE, linewidth=2, solid_capstyle="butt")
    axes.plot(value, y, "o", color=BLUE, markersize=6)


def _tries(axes: Axes, tries: Mapping[int, int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.barh(range(len(tries)), list(tries.values()), color=BLUE, height=0.6)
    for y, count in enumerate(tries.values()):
        axes.text(count, y, f" {count}", va="center")
    _rows(axes, [f"{right} tries right" for right in tries], "questions")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("tries", loc="left", fontweight="bold")


def _rows(axes: Axes, labels: Sequence[str], unit: str, limits: tuple[float, float] | None = None) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel(unit)
    if limits:
        axes.set_xlim(*limits)
    axes.grid(axis="x", color=INK, alpha=0.15)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _legend(axes: Axes) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color=BLUE, marker="o", linewidth=2, label="found, 95 % interval"),
        Line2D([], [], color=ORANGE, marker="D", markerfacecolor="none", linewidth=0, label="published"),
        Line2D([], [], color=INK, marker="|", markersize=11, linewidth=0, label="guessing"),
    ]
    axes.legend(handles=marks, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
