"""Accuracies of the labels of a sweep with their intervals, and how they compare with the baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bimba.report.sweep import statistics
from bimba.report.sweep.answers import TaskAnswers
from bimba.report.sweep.group import Group
from bimba.report.sweep.label import Label
from bimba.report.sweep.statistics import Estimate


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


def scores_of(groups: Sequence[Group], evaluation: str) -> list[Score]:
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


def compare(scores: Sequence[Score], baseline: str) -> tuple[list[Comparison], list[str]]:
    """Each score against the baseline's in the same task and evaluation, and with the same other settings.

    Args:
        baseline: a compressor, or one setting of a compressor, such as "query_position=appended".
    """
    having = [score for score in scores if baseline in score.label.said]
    if not having:
        return [], ["no finished cell has it"] if scores else []
    of = {score.label.compressor for score in having}
    found, apart = [], []
    for score in scores:
        if baseline in score.label.said or ("=" in baseline and score.label.compressor not in of):
            continue
        where = f"{score.label.name}, {score.evaluation}, {score.task}"
        partners = [
            other
            for other in having
            if (other.evaluation, other.task) == (score.evaluation, score.task)
            and score.label.differs_from(other.label, baseline)
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
