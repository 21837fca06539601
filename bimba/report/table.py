"""Tables: to the terminal with rich, to a file as Markdown, from the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bimba.report.accuracy import TaskScore

SCORE_COLUMNS = ("Task", "Accuracy", "95 % interval", "Chance", "Questions")
PUBLISHED_COLUMNS = ("Task", "Published", "Found", "Metric")


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def interval(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def score_rows(scores: Sequence[TaskScore]) -> list[list[str]]:
    """One row per task, for ``SCORE_COLUMNS``."""
    return [[s.task, percent(s.accuracy), interval(s.low, s.high), percent(s.chance), str(s.n)] for s in scores]


def published_rows(published: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """One row per task of ``bimba.report.accuracy.compare``, for ``PUBLISHED_COLUMNS``."""
    return [
        [
            task,
            f"{entry['published']:.2f}",
            "elsewhere" if entry["found"] is None else f"{entry['found']:.2f}",
            entry["metric"] or "submission",
        ]
        for task, entry in published.items()
    ]


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console | None = None
) -> None:
    """Prints to the terminal; the first column is text, the others are right-aligned."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*map(Text, row))  # as it is: "bimba[cuda]" is no markup
    (console or Console()).print(table)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table as Markdown, ending with a newline."""
    head = ["---", *["---:"] * (len(columns) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [columns, head, *rows])


def write_markdown(path: Path, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    path.write_text(f"# {title}\n\n{markdown_table(columns, rows)}", encoding="utf-8")
