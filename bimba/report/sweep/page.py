"""The report of a sweep in sections of plots and tables, and as the pages ``report.html`` and ``report.md``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bimba.report.page import page_environment, plain
from bimba.report.sweep import cost_plots, plots, tables
from bimba.report.sweep.costs import frontiers
from bimba.report.sweep.notices import notices
from bimba.report.sweep.style import Picture
from bimba.report.sweep.summary import Sweep
from bimba.report.sweep.tables import Table

PLOTS = "plots"  # the folder of the pictures, beside the pages

INTERVALS = (
    "Intervals hold at 95 %, over seeds and questions both: a two-way analysis of variance gives the variance of the "
    "mean and its degrees of freedom (Hillis 2007), and Wilson's formula with that t and the number of independent "
    "questions that have that variance gives the interval. With one seed it is Wilson's over the questions, and says "
    "nothing of other seeds. Several questions about one video count as independent."
)
PAIRS = (
    "A difference is taken question by question between two runs of the same seed, and then over seeds and questions "
    "as above. “Better” and “worse” mean that the 95 % interval leaves out 0; each interval is for itself, so of "
    "twenty comparisons without any difference one says so by chance."
)
FRONTIER = (
    "On the frontier is what no other label beats in both: none is as accurate for less, or as cheap and more accurate."
)

DEFAULT = "The default is conf/train.yaml with the cell's compressor, as it is now."


@dataclass(frozen=True)
class Section:
    """A heading with plots, tables, and paragraphs below them."""

    name: str
    title: str
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_shown(self) -> bool:
        return bool(self.pictures or self.tables) or self.name == "settings"  # that there are none says something


@dataclass(frozen=True)
class Page:
    """What both pages show."""

    title: str
    about: str
    command: str
    notices: list[str]
    sections: list[Section]

    @property
    def pictures(self) -> list[Picture]:
        return [picture for section in self.sections for picture in section.pictures]

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]


def make_page(sweep: Sweep, defaults: Mapping[str, Mapping[str, Any]], remark: str, command: str) -> Page:
    """Draws and tabulates everything.

    Args:
        defaults: of each compressor the default configuration, see ``configs.defaults_of``.
        remark: what is amiss with them, or "".
    """
    weighed = frontiers(sweep)
    lines = [plots.frames_plot(sweep), plots.compression_plot(sweep), plots.length_plot(sweep)]
    frontier = tables.frontier_table(weighed)
    comparison = tables.comparison_table(sweep)
    settings = tables.settings_tables(sweep, defaults)
    compared = [remark or ("" if settings else "There are none."), DEFAULT]
    sections = [
        Section("accuracy", "Accuracy", _there(plots.accuracy_plot(sweep)), tables.accuracy_tables(sweep), [INTERVALS]),
        Section("comparison", f"Against {sweep.baseline}", [], _there(comparison), [PAIRS]),
        Section("difficulty", "Frames, compression, needles", _there(*lines), tables.length_tables(sweep)),
        Section(
            *("frontier", "Cost against accuracy", _there(cost_plots.frontier_plot(sweep, weighed)), _there(frontier)),
            [FRONTIER],
        ),
        Section("costs", "Time and memory", _there(cost_plots.cost_plot(sweep)), tables.cost_tables(sweep)),
        Section("loss", "Learning", _there(cost_plots.curve_plot(sweep))),
        Section("settings", "Settings that are not the default", [], settings, [note for note in compared if note]),
        Section("cells", "Cells", [], [tables.cell_table(sweep)]),
    ]
    labels, cells = _number(len(sweep.groups), "label"), _number(len(sweep.cells), "finished cell")
    names = ", ".join(dict.fromkeys(group.label.compressor for group in sweep.groups))
    about = f"{cells} under {labels}. Accuracies in percent, differences in points."
    return Page(f"Sweep: {names}", about, command, notices(sweep), [one for one in sections if one.is_shown])


def rendered(page: Page) -> dict[str, str]:
    """File name -> text."""
    environment = page_environment(markdown=_markdown)
    return {
        f"report.{kind}": environment.get_template(f"sweep.{kind}").render(page=page, folder=PLOTS)
        for kind in ("html", "md")
    }


def _markdown(table: Table) -> str:
    ruler = [*["---"] * table.words, *["---:"] * (len(table.columns) - table.words)]
    rows = [[plain(cell) for cell in row] for row in (table.columns, *table.rows)]
    rows.insert(1, ruler)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def _there(*things: Any) -> list[Any]:
    return [thing for thing in things if thing is not None]
