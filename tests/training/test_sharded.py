"""Two processes with uneven batches, a bad sample and one that is not a number, against one process with all."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.fakes import read_metrics
from tests.training.sharded_program import NOT_A_NUMBER, PER_STEP, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run(folder, 1)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "tests.training.sharded_program", str(folder), "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_process_without_a_video_or_without_any_sample_keeps_the_others_company(one, two):
    ours, theirs = read_metrics(two[0]), read_metrics(one)
    assert [math.isfinite(loss) for loss in theirs["train/loss"]] == [True, True, False, True]
    assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-5, nan_ok=True)
    for name, norms in theirs.items():
        if name.startswith("train/grad_norm"):
            assert ours[name] == pytest.approx(norms, rel=1e-4, abs=1e-6, nan_ok=True), name


def test_they_validate_together_whatever_each_of_them_has(one, two):
    ours, theirs = read_metrics(two[0]), read_metrics(one)
    for name in ("val/loss", "val/accuracy", "val/exact_answers"):
        assert len(theirs[name]) == 2
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


def test_answers_are_asked_of_all_processes_or_of_none(one, two):
    def answers(folder):
        files = sorted((folder / "examples/predictions").glob("*/examples.jsonl"))
        return [[json.loads(line)["answer"] for line in path.read_text().splitlines()] for path in files]

    assert answers(one) == [["A", "A, I would say"], ["A", "A, I would say"]]
    assert answers(two[0]) == [["A"]]  # the first process has a text, or the second has no video, in all other batches


def test_the_processes_skip_the_same_step_and_end_at_the_same_weights(one, two):
    ours, theirs = (json.loads((folder / "norms.json").read_text()) for folder in (two[0], one))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert read_metrics(two[0])["train/skipped_steps"] == [1, 1]
    samples = ", ".join(str(i) for i in (8, 10, 9, 11))  # of the first process, then of the second
    assert f"Step {NOT_A_NUMBER // PER_STEP} is skipped" in two[1].stderr
    assert f"Its samples: {samples}" in two[1].stderr
