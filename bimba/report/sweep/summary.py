"""A sweep put together: cells under their labels, accuracies with intervals, comparisons, and what to be wary of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bimba.report.sweep import statistics
from bimba.report.sweep.answers import TaskAnswers
from bimba.report.sweep.cell import FINISHED, Cell
from bimba.report.sweep.label import Label, label_cells
from bimba.report.sweep.statistics import Estimate
from bimba.types import BimbaError


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


@dataclass(frozen=True)
class Score:
    """The accuracy of one label in one task of one evaluation.

    Attributes:
        answers: of each seed.
        by_length: frames for which the needle is visible -> accuracy over the questions with such a needle.
    """

    label: Label
    evaluation: str
    task: str
    answers: dict[str, TaskAnswers]
    estimate: Estimate
    by_length: dict[int, Estimate] = field(default_factory=dict)

    @property
    def num_frames(self) -> int | None:
        numbers = {answers.num_frames for answers in self.answers.values()}
        return numbers.pop() if len(numbers) == 1 else None

    @property
    def chance(self) -> float:
        return sum(answers.chance for answers in self.answers.values()) / len(self.answers)


@dataclass(frozen=True)
class Comparison:
    """A label against the baseline; ``estimate`` is the difference, over the seeds that both have."""

    label: Label
    baseline: Label
    evaluation: str
    task: str
    estimate: Estimate


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
        baseline: name of the compressor that the others are compared with.
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
    groups, replaced = _groups(finished)
    kept = [cell for group in groups for cell in group.cells]
    primary = _primary(kept, primary)
    scores = [score for name in _ordered(kept, primary) for score in _scores(groups, name)]
    comparisons, apart = _compare(scores, baseline)
    return Sweep(groups, others, scores, comparisons, primary, baseline, replaced, apart)


def _groups(cells: Sequence[Cell]) -> tuple[list[Group], list[tuple[Cell, str]]]:
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


def _evaluations(cells: Sequence[Cell]) -> Counter[str]:
    return Counter(name for cell in cells for name in cell.evaluations)


def _primary(cells: Sequence[Cell], asked: str | None) -> str:
    names = _evaluations(cells)
    if asked is not None and asked not in names:
        raise BimbaError(f"No cell has an evaluation {asked!r}; there are: {', '.join(names) or 'none'}.")
    if asked is not None or not names:
        return asked or ""
    return "test" if "test" in names else names.most_common(1)[0][0]


def _ordered(cells: Sequence[Cell], primary: str) -> list[str]:
    """The evaluations: the primary one, then the others as people count: frames_8 before frames_16."""

    def order(name: str) -> tuple[Any, ...]:
        parts = re.split(r"(\d+)", name)  # words and numbers in turns
        return (name != primary, *(int(part) if part.isdecimal() else part for part in parts))

    return sorted(_evaluations(cells), key=order)


def _scores(groups: Sequence[Group], evaluation: str) -> list[Score]:
    """All tasks of an evaluation, each with all labels that have it."""
    having = [(group, [cell for cell in group.cells if evaluation in cell.evaluations]) for group in groups]
    tasks = dict.fromkeys(task for _, cells in having for cell in cells for task in cell.evaluations[evaluation].tasks)
    return [
        _score(group, evaluation, task)
        for task in tasks
        for group, cells in having
        if any(task in cell.evaluations[evaluation].tasks for cell in cells)
    ]


def _score(group: Group, evaluation: str, task: str) -> Score:
    answers = {
        str(cell.seed): cell.evaluations[evaluation].tasks[task]
        for cell in group.cells
        if evaluation in cell.evaluations and task in cell.evaluations[evaluation].tasks
    }
    by_length = {}
    for length in sorted({length for one in answers.values() for length in one.lengths.values()}):
        part = [
            {q: right for q, right in one.right.items() if one.lengths.get(q) == length} for one in answers.values()
        ]
        if all(part):
            by_length[length] = statistics.accuracy(part)
    estimate = statistics.accuracy([one.right for one in answers.values()])
    return Score(group.label, evaluation, task, answers, estimate, by_length)


def _compare(scores: Sequence[Score], baseline: str) -> tuple[list[Comparison], list[str]]:
    """Each score against the baseline's in the same task and evaluation, and with the same other settings."""
    found, apart = [], []
    for score in scores:
        if score.label.compressor == baseline:
            continue
        where = f"{score.label.name}, {score.evaluation}, {score.task}"
        partners = [
            other
            for other in scores
            if other.label.compressor == baseline
            and (other.evaluation, other.task) == (score.evaluation, score.task)
            and all(dict(score.label.settings).get(key, value) == value for key, value in other.label.settings)
        ]
        if len(partners) != 1:
            apart.append(f"{where}: {len(partners)} cells of {baseline} with the same other settings")
            continue
        (partner,) = partners
        seeds = [seed for seed in score.answers if seed in partner.answers]
        if not seeds:
            apart.append(f"{where}: no seed in common with {partner.label.name}")
            continue
        here, there = ([one.answers[seed].right for seed in seeds] for one in (score, partner))
        if any(a.keys() != b.keys() for a, b in zip(here, there)):
            apart.append(f"{where}: not the same questions as {partner.label.name}")
            continue
        estimate = statistics.difference(here, there)
        found.append(Comparison(score.label, partner.label, score.evaluation, score.task, estimate))
    return found, apart
