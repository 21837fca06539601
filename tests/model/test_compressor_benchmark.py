"""The benchmark of the layer prints a row for each candidate, draws its picture, and refuses when outputs differ."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bimba.model import streaming
from bimba.model.compressor import names
from bimba.ops.selective_scan import REGISTRY

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


def test_every_compressor_has_a_row_with_what_comes_out(benchmark, capsys):
    assert benchmark.main(["--every", "--frames", "2", "--hidden-size", "16", "--repeats", "1"]) == 0
    rows = {line.split()[0]: line.split()[3:] for line in capsys.readouterr().out.splitlines()[2:]}
    assert set(rows) == set(names())
    for name, (tokens_out, of, gflop, parameters) in rows.items():
        assert (tokens_out, of) == ("1,458" if name == "none" else "392", "1,458")
        assert (float(gflop) == 0) == (name in ("none", "pool")), name
        assert (parameters == "0") == (name in ("none", "pool", "tome"))


@pytest.mark.parametrize("direction", [[], ["--backward"], ["--dtype", "bfloat16"]])
def test_a_row_for_each(benchmark, capsys, tmp_path, direction):
    assert benchmark.main([*SMALL, *direction, "--plot", str(tmp_path / "growth.png")]) == 0
    printed = capsys.readouterr().out
    for name in benchmark.layers(8, torch.float32):
        assert printed.count(f"\n{name} ") >= 1
    for full in ("every position", "original's way"):
        assert f"query-only against {full}, 2 frames: " in printed
    floors = [f"floor at 2 frames, {what}" for what in ("matrix products", "exponentials", "the two", "copies")]
    for line in (*floors, "rates: matrix products "):
        assert (line in printed) == ("--backward" not in direction)
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def on_the_cpu(benchmark: ModuleType) -> int:
    return benchmark.main([*SMALL, "--backward"])


def on_the_gpu(benchmark: ModuleType) -> int:
    """As far as there is one."""
    import gpu

    return gpu.main([1], hidden_size=8, repeats=1, device="cpu")


BOTH = pytest.mark.parametrize("main", [on_the_cpu, on_the_gpu])


@BOTH
def test_refuses_when_outputs_differ(benchmark, capsys, monkeypatch, main):
    right = benchmark.EveryPosition.__call__
    monkeypatch.setattr(benchmark.EveryPosition, "__call__", lambda self, *inputs: 1.01 * right(self, *inputs))
    refused(main(benchmark), capsys.readouterr().out, "every position differs from query-only by")


@BOTH
def test_refuses_when_pieces_forget_what_was_carried(benchmark, capsys, monkeypatch, main):
    right = streaming._advance

    def forgetful(*arguments: object) -> object:
        y, (state, edge) = right(*arguments)
        return y, (torch.zeros_like(state), edge)

    monkeypatch.setattr(streaming, "_advance", forgetful)
    refused(main(benchmark), capsys.readouterr().out, "streamed differs from query-only by")


@BOTH
@pytest.mark.parametrize("what", ["tokens", "a parameter"])
def test_refuses_gradients_that_are_no_numbers(benchmark, capsys, monkeypatch, main, what):
    right = benchmark.OriginalsWay.__call__

    def wrong(self: Callable, tokens: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        y = right(self, tokens, queries)
        if not y.requires_grad:
            return y
        source = tokens if what == "tokens" else self.compressor.layers[0].mixer.out_proj.weight
        return y + NoNumber.apply(source).sum()

    monkeypatch.setattr(benchmark.OriginalsWay, "__call__", wrong)
    refused(main(benchmark), capsys.readouterr().out, "original's way differs from query-only by inf")


class NoNumber(torch.autograd.Function):
    """Zeros, whose gradient is not a number."""

    @staticmethod
    def forward(ctx, x):
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_refuses_when_scans_differ(benchmark, capsys, monkeypatch, dtype):
    """All layers compute with the same wrong scan, so that they agree."""
    right = REGISTRY.backends["cpp"]

    def wrong(scan, save):
        y, *others = right.forward(scan, save)
        return (y * 1.02 if scan.u.dtype == dtype else y, *others)

    monkeypatch.setitem(REGISTRY.backends, "cpp", dataclasses.replace(right, forward=wrong))
    refused(
        on_the_gpu(benchmark), capsys.readouterr().out, f"the scan of cpp in {dtype} differs from that of chunked by"
    )


def refused(code: int, printed: str, why: str) -> None:
    assert code == 1
    assert why in printed
    assert " ms" not in printed


@pytest.mark.parametrize(
    ("package", "function"), [("mamba_ssm", "original_scan"), ("causal_conv1d", "original_convolution")]
)
def test_the_gpu_benchmark_goes_on_without_a_package_that_does_not_load(
    benchmark, monkeypatch, tmp_path, package, function
):
    import gpu

    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text('raise OSError("undefined symbol: _Z1f\\nmore")')
    monkeypatch.syspath_prepend(tmp_path)
    said = getattr(gpu, function)("cuda")[1]
    assert said.endswith(f"({package} cannot be loaded: undefined symbol: _Z1f)")


def test_gpu_says_that_there_is_none(benchmark, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(["--gpu"]) == 1
    assert "torch finds no GPU here" in capsys.readouterr().out


def test_the_gpu_table_on_a_cpu(benchmark, capsys):
    """All of it but the GPU's clock and memory."""
    import gpu

    assert gpu.main([1, 2], hidden_size=16, repeats=1, device="cpu") == 0
    printed = capsys.readouterr().out
    for name in (
        "query-only",
        "streamed",
        "every position",
        "original's way",
        "original's, host buffer",
        "scan, both directions, cpp",
    ):
        assert printed.count(f"\n{name}") == 2
