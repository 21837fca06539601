from __future__ import annotations

import pytest
from scipy.stats import binomtest

from bimba.report.accuracy import harness_scores, score, wilson_interval
from bimba.types import BimbaError


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (5, 10), (1, 3), (240, 400), (4206, 5400)])
def test_wilson_interval_equals_scipys(correct, n):
    expected = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(correct, n):
    with pytest.raises(BimbaError, match=f"{correct} right answers of {n}"):
        wilson_interval(correct, n)


def harness_results(correct=(1.0, 0.0, 1.0), aggregate=2 / 3):
    return {
        "results": {"task": {"accuracy,none": aggregate}, "group": {"accuracy,none": aggregate}},
        "samples": {"task": [{"accuracy": value} for value in correct]},
    }


def test_scores_come_from_the_harness():
    assert harness_scores(harness_results(), "accuracy", 0.25) == [score("task", 2, 3, 0.25)]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({}, "no answers"),
        (harness_results(correct=()), "0 answers"),
        (harness_results(aggregate=None), "no metric 'accuracy'"),
        (harness_results(aggregate=0.5), "says accuracy = 0.5, but 2 of its 3"),
    ],
)
def test_no_result_never_passes_for_one(results, message):
    with pytest.raises(BimbaError, match=message):
        harness_scores(results, "accuracy", 0.25)
