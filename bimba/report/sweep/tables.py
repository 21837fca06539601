"""The tables of a sweep's report, as text: the page, Markdown and Weights & Biases show the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bimba.report.sweep.configs import changes_of, setting, shared_changes
from bimba.report.sweep.costs import COSTS, Frontier, digits, spread, values
from bimba.report.sweep.label import NONE, Label
from bimba.report.sweep.notices import code_of
from bimba.report.sweep.statistics import Estimate
from bimba.report.sweep.summary import Sweep

NOTHING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        name: for a key or a file.
        words: how many of its first columns are words, and stand on the left.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    words: int = 1


def accuracy_tables(sweep: Sweep) -> list[Table]:
    """For each task a table of labels by evaluations; the settings that vary have columns of their own."""
    keys = _keys(sweep)
    tables = []
    for task in sweep.tasks:
        names = [name for name in sweep.evaluations if sweep.of(task, name)]
        found = {(score.label, score.evaluation): score for score in sweep.scores if score.task == task}
        frames = {name: sorted({str(s.num_frames or "?") for s in sweep.of(task, name)}) for name in names}
        columns = [f"{name}, {' or '.join(frames[name])} frames" for name in names]
        rows = []
        for group in sweep.groups:
            own = [found.get((group.label, name)) for name in names]
            if any(own):
                compression = NOTHING if group.compression is None else f"{digits(group.compression)}{TIMES}"
                shown = [NOTHING if one is None else _of_seeds(one.estimate, len(group.cells)) for one in own]
                settings = [_value(group.label, key) for key in keys]
                rows.append([group.label.compressor, *settings, compression, str(len(group.cells)), *shown])
        title = f"{task}: % right, with the 95 % interval"
        head = ("Compressor", *keys.values(), "Compression", "Seeds", *columns)
        tables.append(Table(f"accuracy_{task}", title, head, rows, 1 + len(keys)))
    return tables


def comparison_table(sweep: Sweep) -> Table | None:
    """Each label against the baseline."""
    if not sweep.comparisons:
        return None
    rows = [
        [
            *(one.label.name, one.baseline.name, one.evaluation, one.task),
            *(interval(one.estimate, signed=True), verdict(one.estimate)),
            *(str(one.estimate.seeds), str(one.estimate.questions)),
        ]
        for one in sweep.comparisons
    ]
    columns = ("Compressor", "Against", "Evaluation", "Task", "Points more", "So it is", "Seeds", "Questions")
    return Table("comparison", f"Against {sweep.baseline}, same seeds and questions", columns, rows, 4)


def length_tables(sweep: Sweep) -> list[Table]:
    """Accuracy by the needle's length, of the primary evaluation."""
    tables = []
    for task in sweep.tasks:
        scores = [score for score in sweep.of(task, sweep.primary) if score.by_length]
        lengths = sorted({length for score in scores for length in score.by_length})
        if not lengths:
            continue
        rows = [
            [score.label.name, *(interval(score.by_length[n]) if n in score.by_length else NOTHING for n in lengths)]
            for score in scores
        ]
        asked = {n: max(score.by_length[n].questions for score in scores if n in score.by_length) for n in lengths}
        columns = ("Compressor", *(f"{n} frame{'s' if n > 1 else ''} (n = {asked[n]})" for n in lengths))
        tables.append(Table(f"needle_length_{task}", f"{task}: % right, by the needle's length", columns, rows))
    return tables


def cost_tables(sweep: Sweep) -> list[Table]:
    """What each label takes, the mean over its seeds with the range; time and sizes apart, to fit the page."""
    tables = []
    for name, title, is_time in (("costs", "Time and speed", True), ("sizes", "Memory and sizes", False)):
        shown = [
            cost
            for cost in COSTS
            if cost.is_time == is_time and any(values(sweep, group, cost) for group in sweep.groups)
        ]
        if not shown:
            continue
        columns = ("Compressor", *(f"{cost.title}{f', {cost.unit}' if cost.unit else ''}" for cost in shown))
        rows = [
            [group.label.name, *(spread(values(sweep, group, cost)) or NOTHING for cost in shown)]
            for group in sweep.groups
        ]
        tables.append(Table(name, f"{title}: mean over the seeds (least to most)", columns, rows))
    return tables


def frontier_table(found: Sequence[Frontier]) -> Table | None:
    rows = [[one.task, one.cost.title, ", ".join(label.name for label in one.best)] for one in found]
    columns = ("Task", "Cost", "Beaten by none in both, the cheapest first")
    return Table("frontier", "Cost against accuracy", columns, rows, 3) if rows else None


def settings_tables(sweep: Sweep, defaults: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Settings that are not the default: those that all cells share, and those of single labels."""
    shared = shared_changes(sweep.cells, defaults)
    own = [
        [group.label.name, *change]
        for group in sweep.groups
        for change in changes_of(group.cells[0], defaults)
        if change not in shared
    ]
    tables = [
        Table("settings_of_all", "In every cell", ("Key", "Default", "Here"), [list(row) for row in shared], 3),
        Table("settings_of_one", "In single cells", ("Compressor", "Key", "Default", "Here"), own, 4),
    ]
    return [table for table in tables if table.rows]


def cell_table(sweep: Sweep) -> Table:
    """Every cell, the finished ones first, with the reason of those that are not."""
    rows = [
        [cell.name, group.label.name, str(cell.seed), cell.status, code_of(cell), ""]
        for group in sweep.groups
        for cell in group.cells
    ]
    rows += [[old.name, NOTHING, str(old.seed), "replaced", code_of(old), f"by {new}"] for old, new in sweep.replaced]
    rows += [
        [c.name, c.compressor, setting(c, "seed"), c.status, code_of(c), " ".join(c.reason.split())]
        for c in sweep.others
    ]
    return Table("cells", "", ("Cell", "Compressor", "Seed", "Status", "Code", "Reason"), rows, 6)


def interval(estimate: Estimate, signed: bool = False) -> str:
    """``97.5 [95.7, 98.6]``, in percent or points."""
    mean, low, high = (100 * value for value in (estimate.mean, estimate.low, estimate.high))
    if signed:
        return f"{_signed(mean)} [{_signed(low)}, {_signed(high)}]"
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _of_seeds(estimate: Estimate, cells: int) -> str:
    """With how many seeds have this evaluation, where that is not each of the label's cells."""
    few = f" ({estimate.seeds} of {cells} seeds)" if estimate.seeds < cells else ""
    return f"{interval(estimate)}{few}"


def verdict(estimate: Estimate) -> str:
    """What a difference's interval says."""
    if estimate.low > 0:
        return "better"
    return "worse" if estimate.high < 0 else "not told apart"


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def _keys(sweep: Sweep) -> dict[str, str]:
    """The settings that vary within a compressor, and how they are shown."""
    return {
        key: short
        for group in sweep.groups
        for (key, _), short in zip(group.label.settings, group.label.short, strict=True)
    }


def _value(label: Label, key: str) -> str:
    value = dict(label.settings).get(key, NOTHING)
    return NOTHING if value == NONE else value
