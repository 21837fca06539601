"""The Triton kernels against the reference in float64, every gradient: on a GPU, else in the interpreter."""

from __future__ import annotations

import math

import pytest
import torch

from bimba.ops import selective_scan
from bimba.ops.selective_scan import scan_directions
from bimba.ops.selective_scan import triton as backend
from bimba.ops.selective_scan.gpu import launch, plan
from bimba.ops.selective_scan.inputs import Scan

TOLERANCE = 3e-6  # of the largest value
DEVICE = "cpu" if backend.interpreted() else "cuda"
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "initial_state")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Memory that is not written is NaN: outputs, scratch, saved states."""
    empty = torch.empty

    def poisoned(*size, **options):
        x = empty(*size, **options)
        return x.fill_(math.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def small_blocks(monkeypatch):
    """A state is saved every 8 steps and a tile has as many, so that short sequences have several of both."""
    monkeypatch.setattr(plan, "BLOCK", 8)
    monkeypatch.setattr(launch, "_TILE", 8)


@pytest.fixture
def in_chunks(small_blocks, monkeypatch):
    """A GPU so large that sequences are cut into chunks of one block."""
    monkeypatch.setattr(launch, "processors", lambda device: 1000)


def make_inputs(R, B, L, D, N, queries=None, seed=0, token_dtype=torch.float32):
    """Inputs of ``scan_directions``: u, delta, B, C in ``token_dtype``, the rest float32."""
    generator = torch.Generator().manual_seed(seed)
    Q = L if queries is None else len(queries)

    def normal(*size):
        return torch.randn(*size, generator=generator).to(DEVICE)

    return {
        "u": normal(R, B, L, D).to(token_dtype),
        "delta": (normal(R, B, L, D) - 1).to(token_dtype),
        "A": -torch.exp(normal(R, D, N)),
        "B": normal(R, B, L, N).to(token_dtype),
        "C": normal(R, B, Q, N).to(token_dtype),
        "D": normal(R, D),
        "delta_bias": normal(R, D),
        "initial_state": normal(R, B, D, N),
    }


def cotangents(inputs):
    R, B, _, D = inputs["u"].shape
    generator = torch.Generator().manual_seed(7)
    dy = torch.randn(R, B, inputs["C"].shape[2], D, generator=generator)
    return dy.to(DEVICE), torch.randn(R, B, D, inputs["A"].shape[2], generator=generator).to(DEVICE)


def run(inputs, queries=None, softplus=True, reverse=False):
    """y, the last state and the gradient of every input, float64."""
    index = None if queries is None else torch.tensor(queries, dtype=torch.int64, device=DEVICE)
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y, last = scan_directions(**leaves, query_index=index, delta_softplus=softplus, reverse=reverse, backend="triton")
    assert y.dtype == last.dtype == torch.float32
    torch.autograd.backward((y, last), cotangents(inputs))
    assert all(x.grad.dtype == x.dtype for x in leaves.values())
    return {"y": y.detach().double(), "last": last.detach().double()} | {k: x.grad.double() for k, x in leaves.items()}


def run_reference(inputs, queries=None, softplus=True, reverse=False):
    """The same of the reference, in float64, one direction after the other."""
    index = None if queries is None else torch.tensor(queries, dtype=torch.int64, device=DEVICE)
    leaves = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    ys, lasts = [], []
    for r in range(inputs["u"].shape[0]):
        own = {name: x[r].mT if name in ("u", "delta", "B", "C") else x[r] for name, x in leaves.items()}
        y, last = selective_scan(
            **own, delta_softplus=softplus, reverse=reverse != (r == 1), query_index=index, return_last_state=True,
            backend="reference",
        )  # fmt: skip
        ys.append(y.mT)
        lasts.append(last)
    y, last = torch.stack(ys), torch.stack(lasts)
    torch.autograd.backward((y, last), [x.double() for x in cotangents(inputs)])
    return {"y": y.detach(), "last": last.detach()} | {name: x.grad for name, x in leaves.items()}


def assert_same(got, expected, tolerance=TOLERANCE):
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert got[name].shape == want.shape and not got[name].isnan().any(), name
        if want.numel():
            error, scale = float((got[name] - want).abs().max()), float(want.abs().max())
            assert error <= tolerance * scale + 1e-12, f"{name}: off by {error:.1e}, largest value {scale:.1e}"


def compare(inputs, tolerance=TOLERANCE, **options):
    assert_same(run(inputs, **options), run_reference(inputs, **options), tolerance)


QUERIES = {
    "all": None,
    "every": list(range(29)),
    "first": [0],
    "last": [28],
    "none in the middle": [0, 1, 28],
    "some": [3, 5, 6, 7, 8, 15, 16, 20, 26],
    "none": [],
}


@pytest.mark.parametrize("queries", QUERIES)
def test_both_directions_at_queries(small_blocks, queries):
    inputs = make_inputs(2, 1, 29, 5, 3, QUERIES[queries])
    compare(inputs, queries=QUERIES[queries])


@pytest.mark.parametrize("queries", ["all", "some", "none"])
def test_in_chunks(in_chunks, queries):
    inputs = make_inputs(2, 1, 29, 5, 3, QUERIES[queries])
    call = Scan(**inputs, query_index=None, delta_softplus=True, reverse=False)
    assert plan.make_plan(call, launch.processors(call.u.device)).chunks == 4
    compare(inputs, queries=QUERIES[queries])
    inputs.pop("initial_state")
    compare(inputs, queries=QUERIES[queries], reverse=True)


@pytest.mark.parametrize("reverse", [False, True])
def test_one_direction_and_blocks_of_their_real_size(reverse):
    queries = [0, 1, 63, 64, 66]
    compare(make_inputs(1, 2, 67, 4, 2, queries), queries=queries, reverse=reverse)


@pytest.mark.parametrize("length", [8, 16, 24, 25])
def test_whole_tiles_and_what_is_read_ahead(small_blocks, length):
    queries = [0, 1, 7, 8, 15, 16, 23, 24]
    queries = [q for q in queries if q < length]
    inputs = make_inputs(2, 2, length, 3, 5, queries)
    inputs["D"][0, 1] = math.inf  # it reaches its own channel only
    inputs["u"][0, :, :, 1] = 1.0
    with torch.no_grad():
        options = {"query_index": torch.tensor(queries, device=DEVICE), "delta_softplus": True}
        y, _ = scan_directions(**inputs, **options, backend="triton")
    assert torch.isinf(y[0, ..., 1]).all() and torch.isfinite(y[0, ..., ::2]).all() and torch.isfinite(y[1]).all()
    inputs["D"][0, 1] = 0.0
    compare(inputs, queries=queries)


def test_two_directions_reversed(small_blocks):
    queries = [0, 8, 9, 18]
    compare(make_inputs(2, 2, 19, 4, 2, queries), queries=queries, reverse=True)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("absent", [(), ("D",), ("delta_bias",), ("initial_state",), ("D", "delta_bias")])
def test_without_options(softplus, absent):
    inputs = {name: x for name, x in make_inputs(1, 2, 7, 5, 4).items() if name not in absent}
    inputs["delta"] = inputs["delta"].abs()
    compare(inputs, softplus=softplus)


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 2, 16), (1, 9, 32, 16), (1, 6, 33, 5), (1, 17, 70, 1), (1, 3, 2, 21)]
)
def test_any_shape(small_blocks, monkeypatch, shape, in_pieces):
    """B, L, D, N: one of everything, whole and broken tiles, blocks of channels, numbers of states."""
    if in_pieces:
        monkeypatch.setattr(launch, "processors", lambda device: 1000)
    compare(make_inputs(2, *shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_keep_a_float32_state(dtype):
    inputs = make_inputs(2, 1, 9, 5, 16, token_dtype=dtype)
    got, expected = run(inputs), run_reference(inputs)
    halves = ("u", "delta", "B", "C")  # whose gradients are rounded at the end
    assert_same(
        {k: x for k, x in got.items() if k not in halves}, {k: x for k, x in expected.items() if k not in halves}
    )
    assert_same(got, expected, 2**-8)


def test_inputs_of_different_dtypes():
    inputs = make_inputs(1, 1, 9, 5, 3)
    inputs |= {"u": inputs["u"].bfloat16(), "B": inputs["B"].half(), "A": inputs["A"].bfloat16()}
    compare(inputs, 2**-8)


def test_any_strides():
    inputs = make_inputs(2, 2, 9, 5, 3)
    expected = run(inputs)
    wide = {name: torch.cat([x, x * 9], dim=-1)[..., : x.shape[-1]] for name, x in inputs.items()}
    assert_same(run(wide), expected, 1e-6)
    batch_last = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in inputs.items() if x.dim() == 4}
    assert_same(run(inputs | batch_last), expected, 1e-6)


def test_directions_may_share_their_inputs():
    inputs = make_inputs(2, 1, 9, 5, 3)
    inputs["u"] = inputs["u"][:1].expand(2, -1, -1, -1)
    assert inputs["u"].stride(0) == 0
    compare(inputs)


@pytest.mark.parametrize("axis", ["directions", "samples", "tokens"])
def test_offsets_beyond_32_bits(axis):
    """Rows that lie far apart, the last one beyond 2^31 (of tokens: a tile too); between them no memory is touched."""
    shape = {"directions": (2, 3, 3), "samples": (1, 3, 3), "tokens": (1, 1, 10)}[axis]
    inputs = make_inputs(*shape, 16, 4, token_dtype=torch.bfloat16)
    far = 2**28 + 8 if axis == "tokens" else 2**30 + 8
    strides = {"directions": (2 * far, 48, 16, 1), "samples": (1, far, 16, 1), "tokens": (1, 1, far, 1)}[axis]
    last = sum((size - 1) * stride for size, stride in zip((*shape, 16), strides, strict=True))
    assert last > 2**31
    memory = torch.empty(last + 1, dtype=torch.int16, device=DEVICE).view(torch.bfloat16)  # int16: not poisoned
    u = memory.as_strided(inputs["u"].shape, strides)
    u.copy_(inputs["u"])
    with torch.no_grad():
        expected = scan_directions(**inputs, delta_softplus=True, backend="triton")
        got = scan_directions(**inputs | {"u": u}, delta_softplus=True, backend="triton")
        assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
        got = scan_directions(**inputs | {"delta": u}, delta_softplus=True, backend="triton")
        expected = scan_directions(**inputs | {"delta": inputs["u"]}, delta_softplus=True, backend="triton")
        assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


def test_small_steps_keep_their_digits():
    """exp(-12) and less: a logarithm of 1 + z would have lost all of z but its first digits."""
    inputs = make_inputs(1, 1, 9, 5, 3)
    inputs["delta"] = torch.linspace(-30, -12, 45, device=DEVICE).view(1, 1, 9, 5)
    for name in ("D", "delta_bias", "initial_state"):
        inputs.pop(name)
    compare(inputs)


def test_steps_from_nothing_to_everything():
    inputs = make_inputs(2, 1, 9, 5, 3)
    inputs["delta"] = torch.linspace(-100, 100, 45, device=DEVICE).view(1, 1, 9, 5).expand(2, -1, -1, -1)
    compare(inputs)


@pytest.mark.parametrize("name", ["u", "delta", "B", "C"])
def test_nan_reaches_only_what_comes_after(name):
    inputs = make_inputs(2, 1, 9, 40, 3)
    inputs[name][:, 0, 5, 1] = math.nan
    with torch.no_grad():
        y, last = scan_directions(**inputs, delta_softplus=True, backend="triton")
    expected, expected_last = scan_directions(
        **{name: x.double() for name, x in inputs.items()}, delta_softplus=True, backend="reference"
    )
    assert y.isnan().any() and torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(last.isnan(), expected_last.isnan())


@pytest.mark.parametrize("shape", [(0, 5, 4, 3), (2, 0, 4, 3), (2, 5, 0, 3)])
def test_nothing_of_something(shape):
    compare(make_inputs(2, *shape))
