"""What the answers of a few training runs to the same questions prove.

Accuracy over S runs (seeds) and Q questions varies for two reasons: other seeds learn something else, and other
questions are harder or easier. Pooling S·Q answers as if they were independent ignores both. Here both are random
(two-way analysis of variance, as in studies of several readers who judge the same cases): with the mean squares of
seeds, questions and what is left, ::

    variance of the mean = (MS_seeds + max(MS_questions - MS_rest, 0)) / (S·Q)
    degrees of freedom   = (MS_seeds + max(MS_questions - MS_rest, 0))² / (MS_seeds² / (S - 1))

(Hillis, Statistics in Medicine 26, 2007). Seeds that differ a lot bring the degrees of freedom down to S - 1, which
makes an interval of three seeds as wide as it has to be (t = 4.3); seeds that agree leave the questions' variance. The
interval of an accuracy is Wilson's with that t and with the number of independent questions that have that variance;
so it stays within 0 and 100 %, and with one seed it is Wilson's of its questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bimba.report.accuracy import Z_95, wilson_interval
from bimba.types import BimbaError

Answers = Mapping[str, float]  # of one run: question -> how right, 0 to 1


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, as fractions of 1.

    Attributes:
        by_seed: of each run its own mean.
        questions: different ones.
        over: "seeds and questions"; "questions" if there was one run; "seeds" if each run had questions of its own.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    questions: int
    over: str

    @property
    def seeds(self) -> int:
        return len(self.by_seed)


def accuracy(runs: Sequence[Answers]) -> Estimate:
    """The accuracy of several runs with its interval.

    Raises:
        BimbaError: no runs, or one without answers.
    """
    table, over = _table(runs)
    by_seed = tuple(float(np.mean(list(run.values()))) for run in runs)
    questions = len({question for run in runs for question in run})
    mean = float(np.mean(by_seed))
    if table is None:
        variance, t = _of_seeds(np.array(by_seed))
    elif len(runs) == 1:
        variance, t = mean * (1 - mean) / questions, Z_95
    else:
        variance, t = _crossed(table)
    spread = mean * (1 - mean)
    # All answers independent is the most that they can be worth; where all are right, or all wrong, the seeds agree.
    effective = min(spread / variance, sum(map(len, runs))) if variance > 0 and spread > 0 else questions
    low, high = wilson_interval(mean * effective, effective, t)
    return Estimate(mean, low, high, by_seed, questions, over)


def difference(runs: Sequence[Answers], others: Sequence[Answers]) -> Estimate:
    """How much better the first runs are than the others, run by run (of the same seed) and question by question.

    The interval is the mean ± t times its standard error, from the differences of single answers.

    Raises:
        BimbaError: no runs, or runs that did not answer the same questions as their partners.
    """
    if len(runs) != len(others):
        raise BimbaError(f"Got {len(runs)} runs and {len(others)} to compare with; expected pairs of the same seed.")
    for run, other in zip(runs, others):
        if run.keys() != other.keys():
            raise BimbaError(
                f"Two runs that are compared have {len(run.keys() ^ other.keys())} questions that the other has not; "
                "evaluate them on the same data."
            )
    pairs = [{q: run[q] - other[q] for q in run} for run, other in zip(runs, others)]
    table, over = _table(pairs)
    by_seed = tuple(float(np.mean(list(pair.values()))) for pair in pairs)
    questions = len({question for pair in pairs for question in pair})
    if table is None:
        variance, t = _of_seeds(np.array(by_seed))
    elif len(pairs) == 1:
        variance, t = (float(np.var(table, ddof=1)) / questions if questions > 1 else math.inf), Z_95
    else:
        variance, t = _crossed(table)
    # Never surer than if one question had gone the other way: runs that give the same answers prove no equality.
    half_width = t * math.sqrt(max(variance, 1 / (questions + 2) ** 2))
    mean = float(np.mean(by_seed))
    return Estimate(mean, max(-1.0, mean - half_width), min(1.0, mean + half_width), by_seed, questions, over)


def pareto(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Which of some options none of the others beats, being as cheap and as good, and better in one; cheapest first."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i]))
    found: list[int] = []
    for i in order:
        same = found and (costs[i], gains[i]) == (costs[found[-1]], gains[found[-1]])
        if not found or gains[i] > gains[found[-1]] or same:
            found.append(i)
    return found


def t_975(degrees: float) -> float:
    """The 97.5 % point of Student's t; infinite degrees of freedom are the normal distribution."""
    from scipy.special import stdtrit

    return Z_95 if math.isinf(degrees) else float(stdtrit(degrees, 0.975))


def _table(runs: Sequence[Answers]) -> tuple[np.ndarray | None, str]:
    """(S, Q) values if all runs have the same questions, else None; and what their interval is over."""
    if not runs or not all(runs):
        raise BimbaError(f"Got {[len(run) for run in runs]} answers of {len(runs)} runs; expected some of each.")
    questions = sorted(runs[0])
    if any(run.keys() != runs[0].keys() for run in runs):
        return None, "seeds"
    over = "questions" if len(runs) == 1 else "seeds and questions"
    return np.array([[run[question] for question in questions] for run in runs]), over


def _crossed(values: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of (S, Q) values over both axes, S > 1, and its t."""
    seeds, questions = values.shape
    of_seeds, of_questions, mean = values.mean(1, keepdims=True), values.mean(0, keepdims=True), values.mean()
    ms_seeds = questions * float(((of_seeds - mean) ** 2).sum()) / (seeds - 1)
    if questions == 1:
        return ms_seeds / seeds, t_975(seeds - 1)
    ms_questions = seeds * float(((of_questions - mean) ** 2).sum()) / (questions - 1)
    rest = values - of_seeds - of_questions + mean
    ms_rest = float((rest**2).sum()) / ((seeds - 1) * (questions - 1))
    total = ms_seeds + max(ms_questions - ms_rest, 0.0)
    degrees = total**2 / (ms_seeds**2 / (seeds - 1)) if ms_seeds > 0 else math.inf
    return total / (seeds * questions), t_975(degrees)


def _of_seeds(means: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of runs that had questions of their own, and its t."""
    return float(np.var(means, ddof=1)) / len(means), t_975(len(means) - 1)
