"""How the plots of a sweep look: on white, told apart without colour, the legend beside the data and never on it."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours for all kinds of sight, without their yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "h")
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
LABEL_WIDTH = 42  # of what stands beside a row, in letters
INK, FAINT = "#1d2430", "#6b7480"
SETTINGS: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ed",
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in a name begins no formula
    "svg.hashsalt": "bimba",  # the same plot is the same bytes
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Look:
    """Of one name in all plots."""

    colour: str
    marker: str
    line: Any


class Picture:
    """A drawn figure.

    Attributes:
        name: of its files, without suffix.
        title: for the page.
        description: what it shows, in words, for those who cannot see it.
    """

    KINDS = ("png", "svg")

    def __init__(self, name: str, title: str, description: str, figure: Figure):
        self.name = name
        self.title = title
        self.description = f"{title}. {description}."
        self._figure = figure

    def drawn(self, kind: str) -> bytes:
        buffer = io.BytesIO()
        options: dict[str, Any] = {"dpi": 200} if kind == "png" else {"metadata": {"Date": None}}
        with drawing():
            self._figure.savefig(buffer, format=kind, facecolor="white", bbox_inches="tight", **options)
        return buffer.getvalue()


def drawing() -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(SETTINGS)


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name; colour, marker and line repeat after different numbers of names, and so never together."""
    return {
        name: Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)])
        for i, name in enumerate(dict.fromkeys(names))
    }


def panels(number: int, width: float, height: float, most: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels of a size in inches, at most ``most`` of them side by side."""
    from matplotlib.figure import Figure  # without pyplot, which would look for a screen

    across = min(number, most)
    down = -(-number // across)
    figure = Figure(figsize=(max(across * width, 5.0), down * height + 0.6), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)  # type: ignore[union-attr, call-arg]
    axes = [axes for row in figure.subplots(down, across, squeeze=False) for axes in row]
    for unused in axes[number:]:
        unused.remove()
    return figure, axes[:number]


def rows(number: int, width: float, names: Sequence[str], most: int = 3) -> tuple[Figure, list[Axes]]:
    """Panels with a row for each name, beside which the names stand: left of the first panel of each line, wrapped."""
    labels = [textwrap.fill(name, LABEL_WIDTH, break_long_words=False, break_on_hyphens=False) for name in names]
    lines = [label.split("\n") for label in labels]
    high = len(names) * 0.17 * (1 + max(map(len, lines)))  # rows are of one height
    wide = 0.075 * max(len(line) for label in lines for line in label)
    across = min(number, most)
    figure, parts = panels(number, width + wide / across, high + 0.9, most)
    for i, axes in enumerate(parts):
        axes.set_yticks(range(len(names)), labels if i % across == 0 else [""] * len(names))
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
    return figure, parts


def legend(figure: Figure, entries: Mapping[str, Look], more: Sequence[Artist] = (), lines: bool = True) -> None:
    """Above all panels, in room of its own: the figure grows by what lines of the legend the panels would lose."""
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D([], [], color=o.colour, marker=o.marker, linestyle=o.line if lines else "", markersize=6, label=name)
        for name, o in entries.items()
    ]
    handles += more
    column = 0.085 * _longest(handles) + 0.7  # inches
    figure.set_figwidth(max(figure.get_figwidth(), column))
    columns = min(len(handles), int(figure.get_figwidth() / column))
    figure.set_figheight(figure.get_figheight() + 0.21 * (-(-len(handles) // columns) - 1))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)


def guessing(axes: Axes, chance: float, upright: bool = False) -> None:
    """A line at the accuracy of guessing."""
    draw = axes.axvline if upright else axes.axhline
    draw(100 * chance, color=FAINT, linestyle=(0, (1, 2)), linewidth=1.2, zorder=1)


def guessing_entry() -> Artist:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=FAINT, linestyle=(0, (1, 2)), linewidth=1.2, label="guessing")


def plain_axis(axes: Axes, values: Iterable[float], log: bool) -> None:
    """An x axis whose marks are the values that there are, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    there = sorted(set(values))
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    if len(there) <= 8:
        axes.set_xticks(there)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:.3g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _longest(handles: Sequence[Any]) -> int:
    return max((len(handle.get_label()) for handle in handles), default=1)
