"""The benchmarks of training run, on a small vocabulary, for a few steps, on a few clips."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_prints_figures_of_equal_losses():
    printed = run("training.py", "--only", "logits", "--tokens", "4096", "--vocabulary", "40000")
    measured, counted = printed.split("ratio ")[1:]
    # An eighth of the tokens at a time, and what a small run costs besides.
    assert float(measured.removeprefix("1/").split()[0]) > 2
    assert float(counted.removeprefix("below 1/")) > 2


def test_our_step_and_the_bare_loops_have_the_same_losses():
    small = ("data.batch_size=2", "data.global_batch_size=2", "model.config.num_frames=4")
    printed = run("training_step.py", "--steps", "2", "--set", *small)
    assert "losses equal to 0.0001 over 5 steps" in printed
    assert all(float(part.split()[0]) > 0 for part in printed.split("ratio ")[1:])


def test_the_wait_for_clips_is_measured_on_the_right_clips():
    printed = run("training_data.py", "--clips", "2", "--seconds", "2")
    assert 0 <= float(printed.split("data wait ")[1].split(" %")[0]) <= 100


@pytest.fixture
def training_gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import training_gpu

    return training_gpu


def test_the_step_of_a_gpu_runs_at_tiny_sizes_on_the_cpu(training_gpu, capsys):
    assert training_gpu.main(tiny=True) == 0
    printed = capsys.readouterr().out
    assert printed.count("samples/s  MFU unknown  peak unknown") == 2
    assert "32 frames" in printed


def test_there_is_no_speed_where_the_two_ways_differ(training_gpu, capsys, monkeypatch):
    mix = training_gpu.OriginalsWay.mix
    monkeypatch.setattr(training_gpu.OriginalsWay, "mix", lambda self, mixer, x: 2 * mix(self, mixer, x))
    assert training_gpu.main(tiny=True) == 1
    printed = capsys.readouterr()
    assert "differ" in printed.err and "no figures" in printed.err
    assert "samples/s" not in printed.out


def test_without_a_gpu_it_says_what_runs_without(training_gpu, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_gpu.main(tiny=False) == 1
    assert "finds no GPU here; add --tiny" in capsys.readouterr().err
