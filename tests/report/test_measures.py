from __future__ import annotations

import random

import pytest
from harness import harness_results, sample
from scipy.stats import binomtest

from bimba.report.measures import breakdown, interval_of_mean, measures, question_score, tries
from bimba.types import BimbaError


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (1.0, 1.0),
        (False, 0.0),
        ({"score": 1.0, "type": "x"}, 1.0),
        ({"correct": 0, "answer_id": "2"}, 0.0),
        ({"pred_answer": "A", "answer": "A"}, 1.0),
        ({"parsed_pred": "B", "answer": "A"}, 0.0),
        ({"uid-0": 1}, None),
        ("text", None),
    ],
)
def test_scores_are_read_as_the_seven_benchmarks_record_them(record, expected):
    assert question_score(record) == expected


def of(samples, **metrics):
    return {measure.metric: measure for measure in measures(harness_results(samples, **metrics), "quiz")}


def test_a_share_of_questions_has_wilsons_interval_on_either_scale():
    samples = [sample(i, float(i < 3), stock={"score": float(i < 5)}, same=i < 5) for i in range(8)]
    found = of(samples, stock=62.5, same=0.625)
    for metric, right in (("strict_accuracy", 3), ("stock", 5), ("same", 5)):
        expected = binomtest(right, 8).proportion_ci(method="wilson")
        measure = found[metric]
        assert (measure.low, measure.high) == pytest.approx((expected.low, expected.high))
        assert (measure.fraction, measure.n, measure.over) == (right / 8, 8, "questions")
    assert found["stock"].value == 62.5


def test_a_mean_over_types_is_told_from_one_over_questions():
    kinds = ["plot"] * 6 + ["count"] * 2
    samples = [sample(i, 1.0, macro={"task_type": kind, "score": float(i < 7)}) for i, kind in enumerate(kinds)]
    over_types, over_questions = of(samples, macro=0.75)["macro"], of(samples, macro=7 / 8)["macro"]
    assert (over_types.over, over_types.n, over_types.fraction) == ("types", 8, 0.75)
    assert over_types.low < 0.75 < over_types.high
    assert over_questions.over == "questions"
    assert of(samples, macro=0.5)["macro"].low is None  # neither gives it


def test_a_question_with_all_tries_right_counts_once():
    records = [
        {"group": i // 4, "type": "ret", "score": float(i < 7)} for i in range(16)
    ]  # the first of four questions
    samples = [sample(i, 1.0, all_tries=record) for i, record in enumerate(records)]
    measure = of(samples, all_tries=0.25)["all_tries"]
    expected = binomtest(1, 4).proportion_ci(method="wilson")
    assert (measure.over, measure.n, measure.fraction) == ("tries", 4, 0.25)
    assert (measure.low, measure.high) == pytest.approx((expected.low, expected.high))
    assert tries(samples, "all_tries") == {0: 2, 1: 0, 2: 0, 3: 1, 4: 1}
    assert tries(samples, "strict_accuracy") == {}


def test_metrics_stand_in_the_order_of_their_names():
    results = harness_results([sample(0, 1.0)], zeal=1.0, answered=1.0)
    assert [measure.metric for measure in measures(results, "quiz")] == ["answered", "strict_accuracy", "zeal"]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_count_is_a_share_of_the_questions_however_many(number):
    measure = of([sample(i, 1.0, no_letter=float(i < number)) for i in range(8)], no_letter=number)["no_letter"]
    expected = binomtest(number, 8).proportion_ci(method="wilson")
    assert (measure.value, measure.fraction, measure.n) == (number, number / 8, 8)
    assert (measure.low, measure.high) == pytest.approx((expected.low, expected.high))


def test_what_is_no_share_has_no_interval():
    samples = [sample(i, 1.0, submission={"uid": i}, chance=1 / 3) for i in range(2)]
    found = of(samples, submission=2, chance=1 / 3)
    assert (found["submission"].value, found["submission"].fraction) == (2.0, None)
    assert (found["chance"].fraction, found["chance"].low) == (pytest.approx(1 / 3), None)


def test_the_interval_of_a_mean_holds_as_often_as_it_says():
    draw = random.Random(0)
    truth, sizes, held, runs = (0.3, 0.6, 0.9), (20, 40, 60), 0, 600
    for _ in range(runs):
        counts = [(sum(draw.random() < p for _ in range(n)), n) for p, n in zip(truth, sizes)]
        low, high = interval_of_mean(counts)
        held += low <= sum(truth) / 3 <= high
    assert 0.93 <= held / runs <= 0.985


@pytest.mark.parametrize("counts", [[(0, 7)], [(0, 5), (0, 5)], [(0, 3), (0, 9), (0, 1)]])
def test_an_interval_ends_at_0_and_1(counts):
    assert str(interval_of_mean(counts)[0]) == "0.0"
    assert str(interval_of_mean([(n, n) for _, n in counts])[1]) == "1.0"


def test_categories_stand_in_the_order_of_the_data_set_or_of_numbers():
    samples = [sample(i, float(i % 2), kind) for i, kind in enumerate(["short", "medium", "long", "medium"])]
    shuffled = [samples[i] for i in (2, 0, 3, 1)]  # as the answers of several processes come
    found = breakdown(shuffled, "strict_accuracy", ["kind", "tags"])
    assert [(s.task, s.accuracy, s.n) for s in found["kind"]] == [("short", 0, 1), ("medium", 1, 2), ("long", 0, 1)]
    assert [(s.task, s.n) for s in found["tags"]] == [("short", 1), ("all", 4), ("medium", 2), ("long", 1)]
    seconds = [sample(i, 1.0, kind) for i, kind in enumerate([600, 15, 3600])]
    assert [s.task for s in breakdown(seconds, "strict_accuracy", ["kind"])["kind"]] == ["15", "600", "3600"]


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(BimbaError, match="no column 'area'; expected one of kind, tags"):
        breakdown([sample(0, 1.0)], "strict_accuracy", ["area"])
