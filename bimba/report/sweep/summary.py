"""A sweep put together: cells under their labels, accuracies with intervals, comparisons, and what to be wary of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bimba.report.sweep.cell import FINISHED, Cell
from bimba.report.sweep.group import Group, evaluations_of, group_cells, ordered
from bimba.report.sweep.scores import Comparison, Score, compare, scores_of
from bimba.types import BimbaError


@dataclass(frozen=True)
class Sweep:
    """All that a report shows.

    Attributes:
        primary: the evaluation that is shown where there is room for one; "" if there is none.
        replaced: cells that another run of the same label and seed replaces, with its name.
        apart: why labels could not be compared with the baseline.
    """

    groups: list[Group]
    others: list[Cell]
    scores: list[Score]
    comparisons: list[Comparison]
    primary: str
    baseline: str
    replaced: list[tuple[Cell, str]]
    apart: list[str]

    @property
    def cells(self) -> list[Cell]:
        return [cell for group in self.groups for cell in group.cells]

    @property
    def evaluations(self) -> list[str]:
        return list(dict.fromkeys(score.evaluation for score in self.scores))

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(score.task for score in self.scores))

    def of(self, task: str, evaluation: str) -> list[Score]:
        return [score for score in self.scores if (score.task, score.evaluation) == (task, evaluation)]


def summarise(cells: Sequence[Cell], baseline: str = "pool", primary: str | None = None) -> Sweep:
    """Puts the cells of a sweep together.

    Args:
        baseline: what the others are compared with: a compressor, or a setting such as "query_position=appended".
        primary: the evaluation for plots that show one; None: "test", or the one that most cells have.

    Raises:
        BimbaError: no cell is finished, or none has that evaluation.
    """
    finished = [cell for cell in cells if cell.status == FINISHED]
    others = [cell for cell in cells if cell.status != FINISHED]
    if not finished:
        raise BimbaError(
            f"None of the {len(cells)} cells is finished, so there is nothing to report: "
            + "; ".join(f"{cell.name} {cell.status} ({cell.reason})" for cell in others[:8])
            + ("; ..." if len(others) > 8 else "")
            + ". The same train.py command goes on with what is not finished."
        )
    groups, replaced = group_cells(finished)
    kept = [cell for group in groups for cell in group.cells]
    primary = _primary(kept, primary)
    scores = [score for name in ordered(kept, primary) for score in scores_of(groups, name)]
    comparisons, apart = compare(scores, baseline)
    return Sweep(groups, others, scores, comparisons, primary, baseline, replaced, apart)


def _primary(cells: Sequence[Cell], asked: str | None) -> str:
    names = evaluations_of(cells)
    if asked is not None and asked not in names:
        raise BimbaError(f"No cell has an evaluation {asked!r}; there are: {', '.join(names) or 'none'}.")
    if asked is not None or not names:
        return asked or ""
    return "test" if "test" in names else names.most_common(1)[0][0]
