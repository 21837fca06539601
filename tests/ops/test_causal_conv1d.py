"""The causal convolution: every backend against PyTorch's in float64, every gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bimba.ops import bidirectional_conv1d, causal_conv1d
from bimba.ops.causal_conv1d import triton
from bimba.types import BimbaError

BACKENDS = ["pytorch", "cpp", "triton"]


@pytest.fixture(autouse=True)
def nan_in_new_memory() -> Iterator[None]:
    """What a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def few_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter takes its time for every operation on a tile."""
    monkeypatch.setattr(triton, "_FORWARD", {"T": 16, "C": 32, "STEPS": 2, "num_warps": 4})
    monkeypatch.setattr(triton, "_BACKWARD", {"T": 2, "C": 32, "STEPS": 16, "num_warps": 4})


def padded_conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """One direction as PyTorch has it: (B, L, D), (D, W), (D,) -> (B, L, D)."""
    x = x.mT.flip(-1) if reverse else x.mT
    y = F.conv1d(F.pad(x, (weight.shape[1] - 1, 0)), weight.unsqueeze(1), bias, groups=x.shape[1])
    y = F.silu(y) if silu else y
    return (y.flip(-1) if reverse else y).mT


def definition(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool = False) -> Tensor:
    """What ``bidirectional_conv1d`` must return."""
    return torch.stack(
        [
            padded_conv(x, weight[r], None if bias is None else bias[r], silu, reverse != (r == 1))
            for r in range(len(weight))
        ]
    )


def make_inputs(
    batch: int, length: int, channels: int, width: int, directions: int = 2, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "x": torch.randn(batch, length, channels).to(dtype),
        "weight": torch.randn(directions, channels, width) / width,
        "bias": torch.randn(directions, channels),
    }


def run(function, inputs: dict[str, Tensor | None], *options, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The output, and the gradients of a sum that weights every output differently, by a number of ``dtype``."""
    leaves = {name: None if x is None else x.detach().requires_grad_() for name, x in inputs.items()}
    y = function(*leaves.values(), *options)
    dy = (torch.arange(y.numel()) % 17 - 7).view(y.shape).to(dtype) / 7
    y.backward(dy.to(y.dtype))
    return {"y": y.detach(), **{f"d{name}": x.grad for name, x in leaves.items() if x is not None}}


def compare(backend: str, inputs: dict[str, Tensor | None], silu: bool = True, reverse: bool = False) -> None:
    """A backend and the definition of the very same numbers in float64."""
    dtype = inputs["x"].dtype
    found = run(bidirectional_conv1d, inputs, silu, reverse, backend, dtype=dtype)
    exact = {name: None if x is None else x.double() for name, x in inputs.items()}
    expected = run(definition, exact, silu, reverse, dtype=dtype)
    for name, x in expected.items():
        # Triton's interpreter cuts the last bits off where a GPU rounds.
        half = 2**-7 if backend == "triton" else 2**-8
        tolerance = float(x.abs().max()) * (half if dtype == torch.bfloat16 else 1e-5)
        torch.testing.assert_close(
            found[name].double(), x, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert found["y"].dtype == found["dx"].dtype == dtype and found["y"].is_contiguous()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_padded_convolution(backend: str, width: int, silu: bool, reverse: bool) -> None:
    compare(backend, make_inputs(2, 11, 5, width), silu, reverse)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("length", "channels"), [(1, 3), (2, 16), (3, 17), (4, 40), (70, 33)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_size(backend: str, length: int, channels: int, directions: int) -> None:
    """Sequences shorter than the taps reach, tiles that are not full, channels that fill no vector."""
    compare(backend, make_inputs(2, length, channels, 4, directions))


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_bias(backend: str, directions: int) -> None:
    compare(backend, make_inputs(2, 9, 5, 4, directions) | {"bias": None})


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_is_summed_in_float32(backend: str) -> None:
    compare(backend, make_inputs(1, 66, 37, 4, dtype=torch.bfloat16))
    inputs = {name: x.to(torch.bfloat16) for name, x in make_inputs(2, 20, 5, 3, dtype=torch.bfloat16).items()}
    compare(backend, inputs)  # the weights as well


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(backend: str) -> None:
    inputs = make_inputs(2, 9, 6, 4)
    expected = run(bidirectional_conv1d, inputs, True, False, backend)
    wide = torch.randn(9, 2, 13)
    wide[:, :, 3:9] = inputs["x"].transpose(0, 1)
    strided = {
        "x": wide[:, :, 3:9].transpose(0, 1),
        "weight": inputs["weight"].mT.contiguous().mT,
        "bias": inputs["bias"].t().contiguous().t(),
    }
    for x in (strided["x"], inputs["x"].mT.contiguous().mT):
        found = run(bidirectional_conv1d, strided | {"x": x}, True, False, backend)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_samples_no_tokens_no_channels(backend: str, shape: tuple[int, int, int]) -> None:
    found = run(bidirectional_conv1d, make_inputs(*shape, 4), True, False, backend)
    assert found["y"].shape == (2, *shape) and found["dx"].shape == shape
    assert not found["dweight"].any() and not found["dbias"].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_spreads_as_in_pytorch(backend: str, value: float) -> None:
    inputs = make_inputs(1, 20, 17, 4)
    inputs["x"][0, 7, 2] = value
    y, expected = bidirectional_conv1d(*inputs.values(), True, False, backend), definition(*inputs.values(), True)
    assert torch.equal(y.isfinite(), expected.isfinite())
    torch.testing.assert_close(y[y.isfinite()], expected[y.isfinite()], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_values_saturate(backend: str) -> None:
    """exp overflows and underflows on the way; silu and its derivative do not."""
    inputs = make_inputs(1, 80, 16, 1)
    inputs["x"] = torch.linspace(-400, 400, 80).view(1, 80, 1).expand(1, 80, 16).contiguous()
    compare(backend, inputs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_first(backend: str, activation: str | None, reverse: bool) -> None:
    """``causal_conv1d``: (B, D, L), of either memory layout."""
    inputs = make_inputs(2, 9, 5, 4)
    x, weight, bias = inputs["x"].mT, inputs["weight"][0], inputs["bias"][0]
    expected = padded_conv(inputs["x"], weight, bias, activation == "silu", reverse).mT
    for layout in (x, x.contiguous()):
        found = causal_conv1d(layout, weight, bias, activation, reverse, backend)
        torch.testing.assert_close(found, expected)
        assert found.mT.is_contiguous()
    found = causal_conv1d(x, weight, None, activation, reverse, backend)
    torch.testing.assert_close(found, padded_conv(inputs["x"], weight, None, activation == "silu", reverse).mT)


@pytest.mark.parametrize("directions", [1, 2])
def test_gradcheck(directions: int) -> None:
    leaves = [x.double().requires_grad_() for x in make_inputs(2, 5, 2, 3, directions).values()]
    assert torch.autograd.gradcheck(lambda *args: bidirectional_conv1d(*args, True, True), leaves)


@pytest.mark.parametrize("axis", ["samples", "tokens"])
@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_offsets_beyond_32_bits(backend: str, axis: str) -> None:
    """Rows that lie 2^30 elements apart, the last one beyond 2^31; the memory between them is never touched."""
    torch.use_deterministic_algorithms(False)
    inputs = make_inputs(3, 3, 16, 4, dtype=torch.bfloat16)
    expected = run(bidirectional_conv1d, inputs, True, False, backend)
    far = 2**30 + 8
    strides = (far, 16, 1) if axis == "samples" else (64, far, 1)
    x = torch.empty(2 * far + 256, dtype=torch.bfloat16).as_strided((3, 3, 16), strides)
    x.copy_(inputs["x"])
    found = run(bidirectional_conv1d, inputs | {"x": x}, True, False, backend)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 8)}, r"expected x \(B, D, L\)"),
        ({"weight": torch.zeros(4, 4)}, r"expected x \(B, D, L\) and weight \(D, W\)"),
        ({"bias": torch.zeros(4)}, r"expected bias \(3,\), received \(4,\)"),
        ({"activation": "relu"}, "activation must be"),
        ({"weight": torch.zeros(3, 0)}, "weight must have at least one tap"),
        (
            {"x": torch.zeros(2, 3, 8, dtype=torch.int64)},
            "x must be a real floating-point tensor, received torch.int64",
        ),
        ({"bias": torch.zeros(3, device="meta")}, "bias is on meta, x on cpu; put both on one device"),
        ({"backend": "quick"}, "no backend is called 'quick'; choose one of: auto"),
    ],
)
def test_wrong_inputs_are_explained(change: dict[str, object], message: str) -> None:
    inputs = {"x": torch.zeros(2, 3, 8), "weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
    with pytest.raises(BimbaError, match=message):
        causal_conv1d(**(inputs | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(8, 3)}, r"expected x \(B, L, D\) and weight \(R, D, W\) with R 1 or 2, received \(8, 3\)"),
        ({"weight": torch.zeros(3, 3, 4)}, r"with R 1 or 2, received \(2, 8, 3\) and \(3, 3, 4\)"),
        ({"weight": torch.zeros(2, 4, 4)}, r"received \(2, 8, 3\) and \(2, 4, 4\)"),
        ({"bias": torch.zeros(3)}, r"expected bias \(2, 3\), received \(3,\)"),
    ],
)
def test_wrong_inputs_of_two_directions_are_explained(change: dict[str, object], message: str) -> None:
    inputs = {"x": torch.zeros(2, 8, 3), "weight": torch.zeros(2, 3, 4), "bias": torch.zeros(2, 3), "silu": True}
    with pytest.raises(BimbaError, match=message):
        bidirectional_conv1d(**(inputs | change))
