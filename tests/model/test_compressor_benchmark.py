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
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(PATH.parent)  # as when it is run as a script
    spec = importlib.util.spec_from_file_location("compressor_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


@pytest.mark.parametrize("direction", [[], ["--backward"], ["--dtype", "bfloat16"]])
def test_a_row_for_each(benchmark, capsys, tmp_path, direction):
    assert benchmark.main([*SMALL, *direction, "--plot", str(tmp_path / "growth.png")]) == 0
    printed = capsys.readouterr().out
    for name in benchmark.layers(8, torch.float32):
        assert printed.count(f"\n{name} ") >= 1
    assert "query-only against original's way, 2 frames: " in printed
    assert ("floor (matrix products, exponentials) at 2 frames" in printed) == ("--backward" not in direction)
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_refuses_when_outputs_differ(benchmark, capsys, monkeypatch):
    right = benchmark.layers
    monkeypatch.setattr(
        benchmark,
        "layers",
        lambda *of: {**right(*of), "streamed": lambda *inputs: 1.01 * right(*of)["streamed"](*inputs)},
    )
    assert benchmark.main(SMALL) == 1
    printed = capsys.readouterr().out
    assert "streamed differs from query-only by" in printed
    assert " ms" not in printed


def test_gpu_says_that_there_is_none(benchmark, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(["--gpu"]) == 1
    assert "torch finds no GPU here" in capsys.readouterr().out


def test_the_gpu_table_on_a_cpu(benchmark, capsys):
    """All of it but the GPU's clock and memory."""
    import gpu

    assert gpu.main([1, 2], hidden_size=16, repeats=1, device="cpu") == 0
    printed = capsys.readouterr().out
    for name in ("query-only", "streamed", "original's way", "original's, host buffer", "scan, both directions, cpp"):
        assert printed.count(f"\n{name}") == 2
