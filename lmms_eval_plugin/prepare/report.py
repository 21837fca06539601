"""What ``bimba prepare`` found, item by item: a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

READY = "ready"


@dataclass(frozen=True)
class Item:
    """One line. ``ok`` is False where the benchmark cannot be run as things are; ``todo`` says what helps.

    ``names`` are all that is missing or broken, of which ``state`` has the first few; for programs.
    """

    what: str
    state: str
    todo: str = ""
    ok: bool = True
    names: Sequence[str] = ()


@dataclass
class Report:
    """One benchmark's items."""

    benchmark: str
    items: list[Item] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        return all(item.ok for item in self.items)

    def add(self, what: str, state: str, todo: str = "", ok: bool = True, names: Sequence[str] = ()) -> None:
        self.items.append(Item(what, state, todo, ok, names))


def print_reports(reports: Sequence[Report], console: Console | None = None) -> None:
    console = console or Console()
    for report in reports:
        title = f"{report.benchmark}: {READY if report.ready else 'not ready'}"
        table = Table(title=title, title_justify="left", title_style="bold", show_lines=not report.ready)
        table.add_column("Item", no_wrap=True)
        table.add_column("State", overflow="fold")
        table.add_column("What to do", overflow="fold")
        for item in report.items:
            table.add_row(*(Text(cell, style="" if item.ok else "red") for cell in (item.what, item.state, item.todo)))
        console.print(table)


def as_json(reports: Sequence[Report]) -> dict[str, Any]:
    return {
        report.benchmark: {"ready": report.ready, "items": [asdict(item) for item in report.items]}
        for report in reports
    }


def listing(names: Sequence[str], shown: int = 5) -> str:
    """The first names, how many more there are, and where those are named."""
    more = f" and {len(names) - shown} more (--json names all)" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def size(num_bytes: int) -> str:
    """Bytes as people say them; exact below a megabyte."""
    if num_bytes < 10**6:
        return f"{num_bytes:,} bytes"
    return f"{num_bytes / 10**6:,.0f} MB" if num_bytes < 10**9 else f"{num_bytes / 10**9:,.1f} GB"


def below(path: Path, folder: Path) -> str:
    """A path without the folder it is in, if it is."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
