"""What the terminal shows of a sweep: a line for each start and end, a bar below them, and a table when all is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bimba.sweep.cell import Cell, Outcome
from bimba.sweep.pool import Listener


@contextmanager
def shown(num_cells: int, console: Console) -> Iterator[Listener]:
    """Gives a function that shows the starts and ends of cells. The bar is there on a terminal only."""
    columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    ended = 0
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("cells", total=num_cells)

        def show(cell: Cell, outcome: Outcome | None) -> None:
            nonlocal ended
            if outcome is not None:
                ended += 1
                progress.advance(bar)
            count = f"[{ended}/{num_cells}]"
            console.print(Text(f"{count} {cell.name}: {_said(outcome)}"), soft_wrap=True)

        yield show


def _said(outcome: Outcome | None) -> str:
    if outcome is None:
        return "started"
    if outcome.note:
        return outcome.note
    error = f": {_last_line(outcome)}" if outcome.error else ""
    return f"{outcome.status} after {outcome.seconds:.0f} s{error}"


def print_outcomes(cells: Sequence[Cell], outcomes: Sequence[Outcome], console: Console) -> None:
    """A row for each cell."""
    table = Table(title="Sweep", title_justify="left")
    for column, justify in (("Cell", "left"), ("Status", "left"), ("Seconds", "right"), ("Error", "left")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for cell, outcome in zip(cells, outcomes):
        table.add_row(*map(Text, (cell.name, outcome.status, f"{outcome.seconds:.0f}", _last_line(outcome))))
    console.print(table)


def _last_line(outcome: Outcome) -> str:
    return outcome.error.splitlines()[-1] if outcome.error else ""
