"""The benchmark of the layer prints a row for each candidate, draws its picture, and refuses when outputs differ."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

PATH = Path(__file__).parents[2] / "benchmarks/compressor.py"
SMALL = ["--frames", "1", "2", "--hidden-size", "8", "--repeats", "1"]


@pytest.fixture
def benchmark() -> ModuleType:
    threads = torch.get_num_threads()
    spec = importlib.util.spec_from_file_location("compressor_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


@pytest.mark.parametrize("direction", [[], ["--backward"]])
def test_a_row_for_each(benchmark, capsys, tmp_path, direction):
    assert benchmark.main([*SMALL, *direction, "--plot", str(tmp_path / "growth.png")]) == 0
    printed = capsys.readouterr().out
    for name in ("pool", "query-only", "full", "perceiver", "attention, queries", "attention, all"):
        assert printed.count(f"\n{name} ") >= 1
    assert "x as fast as full at 2 frames" in printed
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_refuses_when_outputs_differ(benchmark, capsys, monkeypatch):
    right = benchmark.layers
    monkeypatch.setattr(
        benchmark,
        "layers",
        lambda size: {**right(size), "full": lambda tokens, queries: 1.01 * right(size)["full"](tokens, queries)},
    )
    assert benchmark.main(SMALL) == 1
    assert "no speed is printed" in capsys.readouterr().out
