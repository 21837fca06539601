"""The benchmark of the engine prints its figures for equal answers, and none for different ones."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bimba.inference import VideoQA

PATH = Path(__file__).parents[2] / "benchmarks/evaluation.py"
SMALL = ["--videos", "2", "--frames", "64", "--size", "96", "--questions", "2", "--workers", "1"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PATH.parent)  # as when it is run as a script
    spec = importlib.util.spec_from_file_location("evaluation_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "evaluation_benchmark", module)  # its dataclass looks there
    spec.loader.exec_module(module)
    return module


def test_prints_its_figures(benchmark, capsys):
    assert benchmark.main(SMALL) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ +2\.00 .* 1\.00$", printed, re.MULTILINE)  # two questions a video, each video decoded once
    assert "decode wait, 96 pixels, one question a video, 1 workers: " in printed
    assert "decodes per video, 8 rank(s): 1.00" in printed
    assert "0 of them although written" in printed
    written, total, found, asked = map(
        int, re.search(r"when (\d+) of (\d+) .*: (\d+) taken from the journal, (\d+) asked", printed).groups()
    )
    assert (found, asked, total) == (written, total - written, 6)
    limit, held = map(float, re.search(r"limit ([\d.]+) MiB, most held ([\d.]+)", printed).groups())
    assert held <= limit
    assert "13440 tokens, 92 MiB; keys and values 735 MiB" in printed


def test_refuses_when_answers_differ(benchmark, capsys, monkeypatch):
    monkeypatch.setattr(VideoQA, "answer_all", lambda self, questions, **options: [])
    assert benchmark.main(SMALL) == 1
    printed = capsys.readouterr().out
    assert "differ from those of one question at a time: no figures" in printed
    assert "1.00" not in printed
