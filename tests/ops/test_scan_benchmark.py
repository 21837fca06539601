"""The benchmark prints speeds for equal outputs and refuses for different ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "benchmarks/selective_scan.py"
SMALL = ["--batch", "1", "--channels", "4", "--states", "2", "--length", "20", "--repeats", "1"]


@pytest.fixture
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scan_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_prints_a_ratio_for_every_implementation(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(SMALL) == 0
    printed = capsys.readouterr().out
    assert "forward + backward" in printed
    for name in ("reference", "chunked", "transformers"):
        assert printed.count(f"\n{name} ") == 2


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_refuses_when_outputs_differ(
    benchmark: ModuleType, factor: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = benchmark.transformers_scan
    monkeypatch.setattr(benchmark, "transformers_scan", lambda **inputs: factor * right(**inputs))
    assert benchmark.main(SMALL) == 1
    printed = capsys.readouterr().out
    assert "transformers differs from the reference" in printed
    assert " ms" not in printed
