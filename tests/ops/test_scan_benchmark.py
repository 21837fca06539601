"""The benchmark prints speeds for equal outputs and refuses for different ones."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

PATH = Path(__file__).parents[2] / "benchmarks/scan.py"
SMALL = ["--channels", "16", "--states", "2", "--length", "20", "--queries", "7", "--repeats", "1"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PATH.parent)  # as when it is run as a script
    spec = importlib.util.spec_from_file_location("scan_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(THREADS)


THREADS = torch.get_num_threads()


@pytest.mark.parametrize("direction", [[], ["--backward"]])
def test_prints_a_ratio_for_every_implementation(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], direction: list[str]
) -> None:
    assert benchmark.main(SMALL + direction) == 0
    printed = capsys.readouterr().out
    assert ("forward + backward" in printed) == bool(direction)
    for name in ("cpp", "chunked", "as mamba_ssm", "transformers", "mambapy", "(exp floor)", "(copy floor)"):
        assert printed.count(f"\n{name} ") == 1


def test_a_table_for_each_length_and_their_picture(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert benchmark.main([*SMALL, "--lengths", "10", "20", "--plot", str(tmp_path / "scan.png")]) == 0
    printed = capsys.readouterr().out
    assert "L=10, 4 queries" in printed and "L=20, 7 queries" in printed
    assert (tmp_path / "scan.png").stat().st_size > 10_000


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_refuses_when_outputs_differ(
    benchmark: ModuleType, factor: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = benchmark.peers.transformers_scan
    monkeypatch.setitem(benchmark.peers.PEERS, "transformers", lambda **inputs: factor * right(**inputs))
    assert benchmark.main(SMALL) == 1
    printed = capsys.readouterr().out
    assert "transformers differs from the reference" in printed
    assert " ms" not in printed


def test_short_times_keep_their_digits(benchmark: ModuleType) -> None:
    seconds = (0.0, 1.234e-7, 4.56e-5, 0.0123, 1.0258, float("nan"))
    assert [benchmark.milliseconds(s) for s in seconds] == ["0", "0.000123", "0.0456", "12.3", "1026", "nan"]


@pytest.mark.parametrize(("earlier_s", "calls"), [({}, 4), ({"one": 1.0}, 4), ({"one": 6.0}, 0)])
def test_what_was_slow_is_not_called_again(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, earlier_s: dict[str, float], calls: int
) -> None:
    monkeypatch.setattr(sys.modules["measure"], "MOST_CALLS_IN_A_TURN", 1)
    called = []
    times_s = benchmark.median_seconds({"one": lambda: called.append(1)}, 3, earlier_s)
    assert len(called) == calls
    assert (times_s["one"] == 6.0) == (calls == 0)


def test_what_is_short_is_called_several_times_in_its_turn(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes_s = {"short": 0.001, "longer": 0.04, "long": 1.0}
    called: list[str] = []

    def seconds(run: Callable[[], str]) -> float:
        called.append(run())
        return takes_s[called[-1]]

    monkeypatch.setattr(sys.modules["measure"], "seconds", seconds)
    runs = {name: partial(str, name) for name in takes_s}
    assert benchmark.median_seconds(runs, 2) == takes_s
    turn = ["short"] * 5 + ["longer"] * 2 + ["long"]
    assert called == [*takes_s, *turn, *turn]
