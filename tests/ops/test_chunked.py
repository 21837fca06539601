"""The chunked scan behind its op: states in and out, both directions, how the work is cut, memory, softplus."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bimba.ops.selective_scan import chunked, reference, tiles
from bimba.ops.selective_scan.inputs import Scan
from bimba.ops.selective_scan.workspace import softplus

NAMES = ("y", "last_state", "u", "delta", "A", "B", "C", "D", "delta_bias", "initial_state")


def make_scan(
    shape: tuple[int, int, int, int, int], queries: list[int] | None = None, reverse: bool = False, seed: int = 0
) -> Scan:
    """``shape``: R, B, L, D, N; float64, a bias, a skip and an initial state."""
    directions, batch, length, channels, states = shape
    outputs = length if queries is None else len(queries)
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return Scan(
        u=normal(directions, batch, length, channels),
        delta=normal(directions, batch, length, channels) - 1,
        A=-torch.exp(normal(directions, channels, states)),
        B=normal(directions, batch, length, states),
        C=normal(directions, batch, outputs, states),
        D=normal(directions, channels),
        delta_bias=normal(directions, channels),
        initial_state=normal(directions, batch, channels, states),
        query_index=None if queries is None else torch.tensor(queries, dtype=torch.int64),
        delta_softplus=True,
        reverse=reverse,
    )


def run(backend: Any, scan: Scan) -> dict[str, Tensor | None]:
    """Outputs and gradients, as the backend gives them."""
    y, last_state, saved = backend.forward(scan, True)
    generator = torch.Generator().manual_seed(7)
    dy, dlast = (torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (y, last_state))
    return dict(zip(NAMES, (y, last_state, *backend.backward(scan, saved, dy, dlast)), strict=True))


def assert_same(got: dict[str, Tensor | None], expected: dict[str, Tensor | None], tolerance: float) -> None:
    for name, want in expected.items():
        have = got[name]
        assert (have is None) == (want is None), name
        if have is None or want is None:
            continue
        assert have.shape == want.shape and have.is_contiguous(), name
        scale = want.abs().max() if want.numel() else 0.0
        torch.testing.assert_close(have.double(), want.double(), rtol=0, atol=tolerance * float(scale) + 1e-13)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("queries", [None, [0, 1, 62, 63, 64, 400, 511, 512, 599], [300], []])
def test_both_directions_with_states(queries: list[int] | None, reverse: bool) -> None:
    scan = make_scan((2, 2, 600, 3, 2), queries, reverse)  # two sections, ten tiles, the last ones ragged
    assert_same(run(chunked, scan), run(reference, scan), 1e-12)


@pytest.mark.parametrize("queries", [None, [0, 4, 5, 11, 22]])
@pytest.mark.parametrize("shape", [(2, 3, 23, 5, 4), (1, 1, 1, 1, 1), (2, 2, 8, 1, 3)])
@pytest.mark.parametrize("elements", [1, 4 * 4 * 3])
def test_every_cut_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, queries: list[int] | None, shape: tuple[int, ...], elements: int
) -> None:
    monkeypatch.setattr(tiles, "_TILE", 4)
    monkeypatch.setattr(tiles, "_SECTION", 2)
    monkeypatch.setattr(tiles, "_TILE_ELEMENTS", {"cpu": elements})  # one channel of one sample at a time, or a few
    known = None if queries is None else [q for q in queries if q < shape[2]]
    for reverse in (False, True):
        scan = make_scan(shape, known, reverse)  # type: ignore[arg-type]
        assert_same(run(chunked, scan), run(reference, scan), 1e-12)


@pytest.mark.parametrize("shape", [(1, 0, 5, 3, 2), (2, 2, 0, 3, 2), (1, 2, 5, 0, 2)])
def test_nothing_to_scan(shape: tuple[int, int, int, int, int]) -> None:
    scan = make_scan(shape)
    got = run(chunked, scan)
    for name, value in got.items():
        assert value is not None and not value.isnan().any()
        assert name in ("y", "last_state") or value.shape == getattr(scan, name).shape
    if shape[2] == 0:
        assert scan.initial_state is not None
        assert torch.equal(got["last_state"], scan.initial_state)  # type: ignore[arg-type]


def test_what_is_absent_has_no_gradient() -> None:
    scan = dataclasses.replace(make_scan((1, 2, 9, 3, 2)), D=None, delta_bias=None, initial_state=None)
    got = run(chunked, scan)
    assert [name for name, value in got.items() if value is None] == ["D", "delta_bias", "initial_state"]
    assert_same(got, run(reference, scan), 1e-12)


def test_without_softplus() -> None:
    scan = make_scan((2, 2, 70, 3, 2), [1, 64, 69])
    scan = dataclasses.replace(scan, delta=scan.delta.abs(), delta_bias=None, delta_softplus=False)
    assert_same(run(chunked, scan), run(reference, scan), 1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_state_starts_the_rest_of_the_sequence(reverse: bool) -> None:
    whole = make_scan((1, 2, 150, 3, 2), reverse=reverse)
    parts = [slice(70, 150), slice(0, 70)] if reverse else [slice(0, 70), slice(70, 150)]
    outputs, state = {}, whole.initial_state
    for part in parts:
        rows = {name: getattr(whole, name)[:, :, part] for name in ("u", "delta", "B", "C")}
        outputs[part.start], state, _ = chunked.forward(dataclasses.replace(whole, **rows, initial_state=state), False)
    y, last_state, _ = chunked.forward(whole, False)
    torch.testing.assert_close(torch.cat([outputs[start] for start in sorted(outputs)], dim=2), y)
    torch.testing.assert_close(state, last_state)


@pytest.mark.parametrize("shape", [(2, 3, 130, 5, 4), (1, 2, 0, 3, 2), (1, 0, 3, 3, 2)])
def test_saved_shape_is_known_from_shapes_alone(shape: tuple[int, int, int, int, int]) -> None:
    scan = make_scan(shape, [] if shape[2] < 5 else [1, 4])
    tensors = {field.name: getattr(scan, field.name) for field in dataclasses.fields(scan)}
    meta = Scan(**{name: x.to("meta") if isinstance(x, Tensor) else x for name, x in tensors.items()})
    assert chunked.forward(scan, True)[2].shape == chunked.saved_shape(scan) == chunked.saved_shape(meta)
    assert chunked.forward(scan, False)[2].shape == (0,)


def test_rows_of_any_strides_and_dtypes() -> None:
    scan = make_scan((2, 2, 80, 6, 4), [0, 9, 79])
    expected = run(reference, scan)
    apart = {
        name: torch.stack([getattr(scan, name)] * 2, dim=3)[:, :, :, 1] for name in ("u", "delta", "B", "C")
    }  # every second row
    others = {
        name: torch.stack([getattr(scan, name)] * 2, dim=-1)[..., 1]
        for name in ("A", "D", "delta_bias", "initial_state")
    }
    assert_same(run(chunked, dataclasses.replace(scan, **apart, **others)), expected, 1e-12)
    same = scan.u[:, :1, :1].expand(scan.u.shape)  # strides of 0
    spread = dataclasses.replace(scan, u=same)
    assert_same(run(chunked, spread), run(reference, dataclasses.replace(scan, u=same.contiguous())), 1e-12)

    half = {name: getattr(scan, name).bfloat16() for name in ("u", "delta", "B", "C")}
    single = {name: getattr(scan, name).float() for name in ("A", "D", "delta_bias", "initial_state")}
    narrow = dataclasses.replace(scan, **half, **single)
    exact = dataclasses.replace(scan, **{name: x.double() for name, x in (half | single).items()})
    got = run(chunked, narrow)
    assert all(x is not None and x.dtype == torch.float32 for x in got.values())
    assert_same(got, run(reference, exact), 1e-5)


@pytest.mark.parametrize("shift", [-40.0, 0.0, 5.0, 40.0, 1e4])
def test_float32_from_vanishing_to_huge_steps(shift: float) -> None:
    wide = make_scan((2, 1, 200, 8, 16), [0, 63, 64, 130, 199])
    wide = dataclasses.replace(wide, delta=wide.delta + shift)
    tensors = {name: getattr(wide, name).float() for name in NAMES[2:]}
    got = run(chunked, dataclasses.replace(wide, **tensors))
    expected = run(reference, dataclasses.replace(wide, **{name: x.double() for name, x in tensors.items()}))
    assert_same({name: got[name] for name in NAMES[:2]}, {name: expected[name] for name in NAMES[:2]}, 1e-5)
    assert all(x is not None and x.isfinite().all() for x in got.values())


def test_infinite_steps_forget_the_state() -> None:
    scan = make_scan((1, 1, 6, 2, 2))
    delta = scan.delta.clone()
    delta[0, 0, 3, 0] = float("inf")
    u = scan.u.clone()
    u[0, 0, 3, 0] = 0.0  # inf * 0: not a number, from here on and in this channel alone
    y, last_state, _ = chunked.forward(dataclasses.replace(scan, delta=delta, u=u), False)
    assert y[0, 0, 3:, 0].isnan().all() and last_state[0, 0, 0].isnan().all()
    assert y[0, 0, :3].isfinite().all() and y[..., 1].isfinite().all() and last_state[0, 0, 1].isfinite().all()


@pytest.mark.parametrize("name", ["u", "delta", "B", "C"])
@pytest.mark.parametrize("reverse", [False, True])
def test_nan_stays_in_its_sample_and_its_future(name: str, reverse: bool) -> None:
    scan = make_scan((2, 2, 140, 3, 2), reverse=reverse)
    spoilt = getattr(scan, name).clone()
    spoilt[0, 1, 70, 1] = float("nan")
    y = chunked.forward(dataclasses.replace(scan, **{name: spoilt}), False)[0].isnan()
    after = slice(None, 71) if reverse else slice(70, None)
    channels = slice(1, 2) if name in ("u", "delta") else slice(None)  # B and C are shared by the channels
    positions = slice(70, 71) if name == "C" else after
    expected = torch.zeros_like(y)
    expected[0, 1, positions, channels] = True
    assert torch.equal(y, expected)


def test_no_memory_is_read_before_it_is_written() -> None:
    scan = make_scan((2, 2, 150, 3, 2), [3, 64, 100])
    expected = run(chunked, scan)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty makes with not-a-number
    try:
        assert torch.empty(1).isnan().all()
        got = run(chunked, scan)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(got, expected, 0.0)


class _Sizes(TorchDispatchMode):
    """Number of elements of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.made += [x.numel() for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, Tensor)]
        return out


def test_memory_does_not_grow_with_length_but_for_rows_and_saved_states() -> None:
    batch, channels, states, length = 2, 32, 16, 2000
    scan = make_scan((1, batch, length, channels, states))
    with _Sizes() as sizes:
        run(chunked, scan)
    tiles_of_states = 2 * 65 * batch * channels * states
    rows = 7 * 512 * batch * channels
    assert max(sizes.made) <= max(tiles_of_states, rows, batch * channels * length)
    assert torch.Size(chunked.saved_shape(scan)).numel() <= batch * channels * length


def test_work_is_linear_in_length() -> None:
    totals = []
    for length in (1024, 2048):
        with _Sizes() as sizes:
            run(chunked, make_scan((1, 1, length, 4, 4), list(range(0, length, 5))))
        totals.append((len(sizes.made), sum(sizes.made)))
    (few, small), (many, large) = totals
    assert many <= 2.1 * few and large <= 2.2 * small


def test_a_cut_covers_every_position_query_and_channel_once() -> None:
    scan = make_scan((2, 3, 1100, 2, 2), [0, 5, 64, 511, 512, 1099], reverse=True)
    for block, sections in tiles.Cut(scan).blocks():
        positions, queries, numbers = [], [], []
        for section in sections:
            for tile in section.tiles:
                offsets = section.positions.start, section.queries.start
                positions.append([offsets[0] + p for p in range(tile.positions.start, tile.positions.stop)])
                queries += [offsets[0] + tile.positions.start + p for p in tile.local]
                numbers.append(tile.number)
                assert tile.index is not None and tile.index.tolist() == tile.local
        order = positions[::-1] if block.reverse else positions
        assert list(itertools.chain(*order)) == list(range(1100))
        assert sorted(queries) == [0, 5, 64, 511, 512, 1099]
        assert numbers == list(range(chunked.saved_shape(scan)[1]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_softplus(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.linspace(-14, 60, 100_001, dtype=torch.float64).to(dtype)
    before = x.clone()
    got = softplus(x, out=torch.empty_like(x), memory=torch.empty_like(x))
    assert torch.equal(x, before)
    exact = F.softplus(x.double(), threshold=100)
    assert ((got.double() - exact) / exact).abs().max() <= tolerance


def test_softplus_at_the_edges() -> None:
    x = torch.tensor([-float("inf"), -200.0, -50.0, 0.0, 200.0, float("inf"), float("nan")])
    got = softplus(x, out=torch.empty_like(x), memory=torch.empty_like(x))
    torch.testing.assert_close(got, F.softplus(x), rtol=1e-5, atol=0, equal_nan=True)
