from __future__ import annotations

import numpy as np
import pytest

from bimba.report.accuracy import wilson_interval
from bimba.report.sweep.statistics import accuracy, difference, pareto, t_975
from bimba.types import BimbaError


def run(*right: float) -> dict[str, float]:
    return {f"q{i}": float(value) for i, value in enumerate(right)}


def test_students_t_is_that_of_the_tables():
    assert [t_975(n) for n in (1, 2, 10, float("inf"))] == pytest.approx([12.706, 4.303, 2.228, 1.960], abs=5e-4)


def test_one_seed_has_wilsons_interval():
    found = accuracy([run(*[1] * 30, *[0] * 10)])
    assert (found.low, found.high) == pytest.approx(wilson_interval(30, 40))
    assert (found.mean, found.over, found.seeds, found.questions) == (0.75, "questions", 1, 40)


def test_seeds_and_questions_both_count():
    """Worked out by hand: seeds 3/4 and 1/4 right, questions 1, 1/2, 1/2, 0."""
    found = accuracy([run(1, 1, 1, 0), run(1, 0, 0, 0)])
    # MS_seeds = 4 · 2 · (1/4)² = 1/2; MS_questions = 2 · (1/4 + 0 + 0 + 1/4) / 3 = 1/3
    # The rest is -1/4, 1/4, 1/4, -1/4 and its opposite: MS_rest = 8/16 / 3 = 1/6
    total = 1 / 2 + 1 / 3 - 1 / 6
    variance, degrees = total / 8, total**2 / (1 / 2) ** 2
    effective = 0.25 / variance
    assert (found.low, found.high) == pytest.approx(wilson_interval(0.5 * effective, effective, t_975(degrees)))
    assert found.by_seed == (0.75, 0.25)
    assert found.over == "seeds and questions"


def test_seeds_that_answer_alike_are_worth_one():
    answers = run(1, 1, 0, 1, 0, 1, 1, 1)
    one, three = accuracy([answers]), accuracy([answers] * 3)
    pooled = wilson_interval(18, 24)
    assert three.high - three.low > pooled[1] - pooled[0]
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.1)


@pytest.mark.parametrize("number", [7, 20, 240])  # of which some have a bound that rounding would leave off 0 and 1
@pytest.mark.parametrize(("right", "bound"), [(1.0, "high"), (0.0, "low")])
def test_all_right_or_all_wrong_is_not_certain(right, bound, number):
    found = accuracy([run(*[right] * number)] * 3)
    assert (found.low, found.high) == pytest.approx(wilson_interval(number * right, number))
    assert getattr(found, bound) == right


def test_intervals_hold_as_often_as_they_say():
    """Seeds and questions that differ, 300 sweeps of 3 seeds: intervals hold in 95 %, pooled ones in far fewer."""
    rng = np.random.default_rng(0)

    def chances(seeds: int, questions: int) -> np.ndarray:
        levels = 0.4 + rng.normal(0, 0.5, (seeds, 1)) + rng.normal(0, 1.5, (1, questions))
        return 1 / (1 + np.exp(-levels))

    truth = chances(2000, 2000).mean()
    holds, pooled = 0, 0
    for _ in range(300):
        answers = (rng.random((3, 100)) < chances(3, 100)).astype(float)
        found = accuracy([run(*row) for row in answers])
        holds += found.low <= truth <= found.high
        low, high = wilson_interval(answers.sum(), answers.size)
        pooled += low <= truth <= high
    assert holds / 300 > 0.91
    assert pooled / 300 < 0.75


def test_seeds_with_questions_of_their_own_go_by_seeds():
    other = {f"other {i}": float(i < 4) for i in range(10)}
    found = accuracy([run(*[1] * 6, *[0] * 4), other])
    assert (found.mean, found.questions, found.over) == (0.5, 20, "seeds")
    assert found.low < 0.2  # two seeds: t = 12.7


def test_a_difference_is_taken_by_seed_and_question():
    better, worse = [run(1, 1, 1, 0), run(1, 1, 0, 1)], [run(0, 1, 0, 0), run(1, 0, 0, 0)]
    found = difference(better, worse)
    assert found.mean == pytest.approx(0.5)
    assert found.by_seed == (0.5, 0.5)
    # d = (1 0 1 0), (0 1 0 1): seeds and questions differ in nothing, so nothing is left but the floor of one question.
    assert (found.low, found.high) == pytest.approx((0.5 - 1.959964 / 6, 0.5 + 1.959964 / 6))
    against = difference(worse, better)
    assert (against.mean, against.low, against.high) == pytest.approx((-0.5, -found.high, -found.low))


def test_equal_answers_prove_no_equality():
    found = difference([run(1, 0, 1)], [run(1, 0, 1)])
    assert found.mean == 0
    assert found.low < 0 < found.high


def test_what_cannot_be_compared_says_why():
    with pytest.raises(BimbaError, match="2 questions that the other has not"):
        difference([run(1, 0, 1)], [run(1)])
    with pytest.raises(BimbaError, match="2 runs and 1 to compare"):
        difference([run(1), run(0)], [run(1)])
    with pytest.raises(BimbaError, match="expected some of each"):
        accuracy([])


def test_the_frontier_holds_what_none_beats_in_both():
    costs, gains = [3, 1, 2, 2, 4, 1], [90, 50, 80, 70, 85, 50]
    assert pareto(costs, gains) == [1, 5, 2, 0]  # the twins both; 70 at 2 and 85 at 4 are beaten
