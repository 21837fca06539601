"""The scan: the reference against a loop in float64, every other backend against the reference, gradients included."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from bimba.ops import selective_scan
from bimba.ops.selective_scan import REGISTRY, tiles
from bimba.types import BimbaError

BACKENDS = ["chunked"]  # each is tested against "reference"
LARGE, SMALL = (2, 6, 3, 150), (3, 5, 4, 7)  # B, D, N, L: several tiles; shorter than a tile


def make_inputs(
    shape: tuple[int, int, int, int], num_queries: int | None = None, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Tensor]:
    batch, channels, states, length = shape
    outputs = length if num_queries is None else num_queries
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    inputs = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length) - 1,
        "A": -torch.exp(normal(channels, states)),
        "B": normal(batch, states, length),
        "C": normal(batch, states, outputs),
        "D": normal(channels),
        "z": normal(batch, channels, outputs),
        "delta_bias": normal(channels),
    }
    return {name: x.to(dtype) for name, x in inputs.items()}


def run(inputs: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """y and the gradient of every input, all float64."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}  # keeps the strides
    y = selective_scan(**leaves, **options)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    y.backward(cotangent.to(y.dtype))
    grads = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()}
    return {"y": y.detach().double()} | {name: grad.double() for name, grad in grads.items()}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        error = (got[name] - want).abs().max() if want.numel() else torch.tensor(0.0)
        scale = want.abs().max() if want.numel() else torch.tensor(1.0)
        assert error <= tolerance * scale + 1e-12, f"{name}: off by {error:.1e}, largest value {scale:.1e}"


def loop_over_every_number(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor, reverse: bool
) -> Tensor:
    """The formulas once more, scalar by scalar, sharing nothing with the package."""
    y = torch.zeros_like(u)
    batch, channels, length = u.shape
    for b, d in itertools.product(range(batch), range(channels)):
        state = torch.zeros(A.shape[1], dtype=torch.float64)
        for t in reversed(range(length)) if reverse else range(length):
            step = torch.log1p(torch.exp(delta[b, d, t] + delta_bias[d]))
            state = torch.exp(step * A[d]) * state + step * B[b, :, t] * u[b, d, t]
            y[b, d, t] = (C[b, :, t] @ state + D[d] * u[b, d, t]) * z[b, d, t] * torch.sigmoid(z[b, d, t])
    return y


@pytest.mark.parametrize("reverse", [False, True])
def test_reference_is_the_definition(reverse: bool) -> None:
    inputs = make_inputs(SMALL)
    y = selective_scan(**inputs, delta_softplus=True, reverse=reverse, backend="reference")
    torch.testing.assert_close(y, loop_over_every_number(**inputs, reverse=reverse), rtol=1e-12, atol=1e-12)


def test_reverse_equals_flipping() -> None:
    inputs = make_inputs(SMALL)
    flipped = {name: x.flip(-1) if x.shape[-1:] == (7,) else x for name, x in inputs.items()}
    expected = selective_scan(**flipped, delta_softplus=True, backend="reference").flip(-1)
    y = selective_scan(**inputs, delta_softplus=True, reverse=True, backend="reference")
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_query_index_equals_selecting() -> None:
    inputs = make_inputs(SMALL)
    index = torch.tensor([1, 2, 6])
    at_queries = inputs | {name: inputs[name].index_select(2, index) for name in ("C", "z")}
    y = selective_scan(**at_queries, query_index=index, backend="reference")
    torch.testing.assert_close(y, selective_scan(**inputs, backend="reference")[:, :, index])


QUERIES = {
    "all": None,
    "every": list(range(150)),
    "first": [0],
    "last": [149],
    "none in the middle tiles": [0, 1, 149],
    "some": [3, 5, 6, 63, 64, 90, 127, 128, 140],
    "none": [],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("queries", QUERIES)
def test_backend_equals_reference_at_queries(backend: str, reverse: bool, queries: str) -> None:
    positions = QUERIES[queries]
    inputs = make_inputs(LARGE, None if positions is None else len(positions))
    index = None if positions is None else torch.tensor(positions, dtype=torch.int64)
    options = {"delta_softplus": True, "reverse": reverse, "query_index": index}
    assert_same(run(inputs, backend=backend, **options), run(inputs, backend="reference", **options), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("absent", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_backend_equals_reference_without_options(backend: str, softplus: bool, absent: tuple[str, ...]) -> None:
    inputs = {name: x for name, x in make_inputs(SMALL).items() if name not in absent}
    inputs["delta"] = inputs["delta"].abs()
    expected = run(inputs, backend="reference", delta_softplus=softplus)
    assert_same(run(inputs, backend=backend, delta_softplus=softplus), expected, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 16, 1), (1, 4, 5, 65), (3, 2, 1, 9), (2, 7, 3, 129)])
def test_backend_equals_reference_for_odd_shapes(backend: str, reverse: bool, shape: tuple[int, int, int, int]) -> None:
    inputs = make_inputs(shape)
    expected = run(inputs, backend="reference", delta_softplus=True, reverse=reverse)
    assert_same(run(inputs, backend=backend, delta_softplus=True, reverse=reverse), expected, 1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("positions", [None, [0, 7, 8, 49]])
def test_chunked_cut_into_blocks_of_samples_and_channels(
    monkeypatch: pytest.MonkeyPatch, reverse: bool, positions: list[int] | None
) -> None:
    monkeypatch.setattr(tiles, "_TILE_ELEMENTS", {"cpu": 128})  # 2 channels and 1 sample at a time
    inputs = make_inputs((3, 5, 4, 50), None if positions is None else len(positions))
    index = None if positions is None else torch.tensor(positions)
    options = {"delta_softplus": True, "reverse": reverse, "query_index": index}
    assert_same(run(inputs, backend="chunked", **options), run(inputs, backend="reference", **options), 1e-12)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_float32_is_close_to_float64(backend: str) -> None:
    inputs = {name: x.float() for name, x in make_inputs(LARGE).items()}
    expected = run({name: x.double() for name, x in inputs.items()}, backend="reference", delta_softplus=True)
    assert_same(run(inputs, backend=backend, delta_softplus=True), expected, 1e-5)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_bfloat16_inputs_keep_a_float32_state(backend: str) -> None:
    exact = {name: x.bfloat16().float() for name, x in make_inputs(LARGE).items()}
    half = {name: x if name in ("A", "D", "delta_bias") else x.bfloat16() for name, x in exact.items()}
    assert selective_scan(**half, backend=backend).dtype == torch.bfloat16
    expected = run(exact, backend="reference", delta_softplus=True)
    assert_same(run(half, backend=backend, delta_softplus=True), expected, 2**-7)  # rounding of y and of the gradients


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(backend: str) -> None:
    inputs = make_inputs(LARGE)
    expected = run(inputs, backend="reference", delta_softplus=True)
    token_major = {name: x.mT.contiguous().mT if x.dim() == 3 else x for name, x in inputs.items()}
    assert_same(run(token_major, backend=backend, delta_softplus=True), expected, 1e-12)
    every_second = {name: torch.stack([x, x * 9], dim=-1)[..., 0] for name, x in inputs.items()}
    assert_same(run(every_second, backend=backend, delta_softplus=True), expected, 1e-12)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_groups_of_channels_have_their_own_B_and_C(backend: str) -> None:
    inputs = make_inputs((2, 6, 4, 9))
    other = make_inputs((2, 6, 4, 9), seed=1)
    grouped = inputs | {name: torch.stack([inputs[name], other[name]], dim=1) for name in ("B", "C")}
    y = selective_scan(**grouped, backend=backend)
    first, second = slice(0, 3), slice(3, 6)
    for group, source in ((first, inputs), (second, other)):
        whole = selective_scan(**(inputs | {"B": source["B"], "C": source["C"]}), backend=backend)
        torch.testing.assert_close(y[:, group], whole[:, group])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [60.0, -60.0])
def test_huge_and_vanishing_steps(backend: str, shift: float) -> None:
    inputs = make_inputs(SMALL)
    inputs["delta"] += shift  # decay factors underflow to 0, or all but equal 1
    expected = run(inputs, backend="reference", delta_softplus=True)
    single = {name: x.float() for name, x in inputs.items()}
    got = run(single, backend=backend, delta_softplus=True)
    assert all(torch.isfinite(x).all() for x in got.values())
    assert_same({"y": got["y"]}, {"y": expected["y"]}, 1e-5)
    assert_same(run(inputs, backend=backend, delta_softplus=True), expected, 1e-9)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_nan_reaches_only_what_comes_after(backend: str) -> None:
    inputs = make_inputs(SMALL)
    inputs["u"][0, 0, 3] = float("nan")
    y = selective_scan(**inputs, backend=backend)
    assert y[0, 0, 3:].isnan().all()
    assert not y[0, 0, :3].isnan().any()
    assert not y[1:].isnan().any()


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(backend: str, reverse: bool) -> None:
    inputs = make_inputs((2, 3, 2, 4), 2)
    leaves = [x.requires_grad_() for x in inputs.values()]
    index = torch.tensor([1, 3])

    def scan(*values: Tensor) -> Tensor:
        named = dict(zip(inputs, values, strict=True))
        return selective_scan(**named, delta_softplus=True, reverse=reverse, query_index=index, backend=backend)

    assert torch.autograd.gradcheck(scan, leaves)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("shape", [(0, 3, 2, 5), (2, 3, 2, 0)])
def test_empty_batch_and_sequence(backend: str, shape: tuple[int, int, int, int]) -> None:
    inputs = make_inputs(shape)
    got = run(inputs, backend=backend)
    assert got["y"].shape == inputs["u"].shape
    assert (got["A"] == 0).all()


def test_second_derivatives_are_refused() -> None:
    inputs = {name: x.requires_grad_() for name, x in make_inputs(SMALL).items()}
    y = selective_scan(**inputs, backend="chunked")
    (grad,) = torch.autograd.grad(y.sum(), inputs["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        grad.sum().backward()


def test_autocast_does_not_reach_the_state() -> None:
    inputs = make_inputs(LARGE, dtype=torch.float32)
    expected = run(inputs, backend="chunked", delta_softplus=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(run(inputs, backend="chunked", delta_softplus=True), expected, 1e-6)


AT_TWO = {"C": torch.zeros(3, 4, 2), "z": torch.zeros(3, 5, 2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(3, 5)}, r"u must be \(B, D, L\)"),
        ({"A": torch.zeros(5)}, r"A must be \(D, N\)"),
        ({"A": torch.zeros(5, 0)}, "at least one state"),
        ({"A": torch.zeros(6, 4)}, r"A must have shape \(5, 4\), received \(6, 4\)"),
        ({"delta": torch.zeros(3, 5, 8)}, r"delta must have shape \(3, 5, 7\), received \(3, 5, 8\)"),
        ({"B": torch.zeros(3, 3, 7)}, r"B must have shape \(3, 4, 7\)"),
        ({"C": torch.zeros(3, 4, 6)}, r"C must have shape \(3, 4, 7\)"),
        ({"z": torch.zeros(3, 5, 6)}, r"z must have shape \(3, 5, 7\)"),
        ({"D": torch.zeros(4)}, r"D must have shape \(5,\)"),
        ({"delta_bias": torch.zeros(4)}, r"delta_bias must have shape \(5,\)"),
        ({"B": torch.zeros(3, 4, 7, dtype=torch.int64)}, "B must be a real floating-point tensor"),
        ({"A": torch.zeros(5, 4, dtype=torch.complex64)}, "A must be a real floating-point tensor"),
        ({"u": torch.zeros(3, 5, 7, dtype=torch.int64)}, "u must be a real floating-point tensor"),
        ({"B": torch.zeros(3, 4, 7, device="meta")}, "B is on meta, u on cpu"),
        ({"B": torch.zeros(3, 2, 4, 7), "C": torch.zeros(3, 2, 4, 7)}, "5 channels cannot be split into the 2 groups"),
        ({"query_index": torch.tensor([1.0])}, "query_index must be a .* int64"),
        ({"query_index": torch.tensor([[1]])}, "query_index must be a .* int64"),
        (AT_TWO | {"query_index": torch.tensor([1, 7])}, r"must lie in \[0, 6\], received values from 1 to 7"),
        (AT_TWO | {"query_index": torch.tensor([-1, 2])}, r"query_index must lie in \[0, 6\]"),
        (AT_TWO | {"query_index": torch.tensor([2, 1])}, "strictly increasing"),
        (AT_TWO | {"query_index": torch.tensor([1, 1])}, "strictly increasing"),
        ({"initial_state": torch.zeros(3, 4, 5)}, r"initial_state must have shape \(3, 5, 4\)"),
        ({"query_index": torch.tensor([1, 2])}, r"C must have shape \(3, 4, 2\), received \(3, 4, 7\)"),
        ({"backend": "fast"}, "no backend is called 'fast'; choose one of: auto, .*cpp, chunked, reference"),
    ],
)
def test_wrong_inputs_are_explained(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BimbaError, match=message):
        selective_scan(**(make_inputs(SMALL) | change))


def test_auto_says_its_choice_once(caplog: pytest.LogCaptureFixture) -> None:
    REGISTRY.__init__(REGISTRY.package, REGISTRY.variable)  # forget what was said
    with caplog.at_level(logging.INFO):
        y = [selective_scan(**make_inputs(SMALL)) for _ in range(2)]
    assert torch.equal(*y)
    said = [record.message for record in caplog.records]
    assert said[-2:] == [
        "bimba.ops.selective_scan: backend 'cpp' passed over: it computes in float32, an input is float64",
        "bimba.ops.selective_scan: auto chose backend 'chunked'",
    ]
    assert len(said) == len(set(said))
    assert all("passed over: " in message for message in said[:-1])
