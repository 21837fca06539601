"""Finished cells under their labels, and the evaluations that they have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bimba.report.sweep.cell import Cell
from bimba.report.sweep.label import Label, label_cells


@dataclass(frozen=True)
class Group:
    """The finished cells of one label, one for each seed."""

    label: Label
    cells: list[Cell]

    @property
    def seeds(self) -> list[Any]:
        return [cell.seed for cell in self.cells]

    @property
    def compression(self) -> float | None:
        return self.mean([cell.compression for cell in self.cells])

    @staticmethod
    def mean(values: Sequence[float | None]) -> float | None:
        """Of what the cells say; None if none of them does."""
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None


def group_cells(cells: Sequence[Cell]) -> tuple[list[Group], list[tuple[Cell, str]]]:
    """Cells by their label. Two runs of one label and seed are no two samples: the later one counts."""
    members: dict[Label, dict[str, Cell]] = {}
    replaced = []
    for cell, label in zip(cells, label_cells(cells)):
        own = members.setdefault(label, {})
        before = own.get(str(cell.seed))
        if before is None:
            own[str(cell.seed)] = cell
            continue
        older, newer = sorted([before, cell], key=lambda one: str(one.record.get("started") or ""))
        own[str(cell.seed)] = newer
        replaced.append((older, newer.name))
    return [Group(label, list(own.values())) for label, own in members.items()], replaced


def evaluations_of(cells: Sequence[Cell]) -> Counter[str]:
    return Counter(name for cell in cells for name in cell.evaluations)


def ordered(cells: Sequence[Cell], primary: str) -> list[str]:
    """The evaluations: the primary one, then the others as people count: frames_8 before frames_16."""

    def order(name: str) -> tuple[Any, ...]:
        parts = re.split(r"(\d+)", name)  # words and numbers in turns
        return (name != primary, *(int(part) if part.isdecimal() else part for part in parts))

    return sorted(evaluations_of(cells), key=order)
