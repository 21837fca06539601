"""The scan taken apart, against the scan itself and against its gradients."""

from __future__ import annotations

import pytest
import torch

from bimba.ops.selective_scan import attribution, scan_directions
from bimba.ops.selective_scan.attribution import attribute
from bimba.types import BimbaError

L, D, N = 50, 3, 4
QUERIES = [2, 3, 11, 12, 30, 47, 49]


def inputs(dtype=torch.float64, length=L, queries=QUERIES, step=1.0):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    index = torch.tensor(queries)
    return (
        normal(length, D).to(dtype),
        (step * torch.rand(length, D, generator=generator, dtype=torch.float64)).to(dtype),
        -(0.05 + torch.rand(D, N, generator=generator, dtype=torch.float64)).to(dtype),
        normal(length, N).to(dtype),
        normal(len(index), N).to(dtype),
        index,
    )


def scan(u, step, A, B, C, index, reverse):
    """y (Q, D) without skip, by the definition."""
    return scan_directions(
        u[None, None], step[None, None], A[None], B[None, None], C[None, None],
        reverse=reverse, query_index=index, backend="reference",
    )[0][0, 0]  # fmt: skip


def everything(given, reverse, **more):
    """x (Q, L, D), channel by channel."""
    return torch.stack([attribute(*given, lambda x, d=d: x[d], reverse=reverse, **more) for d in range(D)], dim=-1)


@pytest.fixture(params=[1, 3, 16])
def tile(request, monkeypatch):
    """Tiles of so many queries, with 5 tokens."""
    monkeypatch.setattr(attribution, "TILE_QUERIES", request.param)
    monkeypatch.setattr(attribution, "TILE_ENTRIES", 5 * request.param * D)


@pytest.mark.parametrize("reverse", [False, True])
def test_contributions_add_up_to_the_output(tile, reverse):
    given = inputs()
    torch.testing.assert_close(everything(given, reverse).sum(1), scan(*given, reverse), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reverse", [False, True])
def test_weights_are_the_gradients(tile, reverse):
    u, *others = inputs()
    u.requires_grad_()
    y = scan(u, *others, reverse)
    gradients = torch.stack(
        [torch.autograd.grad(y[q, d], u, retain_graph=True)[0][:, d] for q in range(len(QUERIES)) for d in range(D)]
    )
    w = everything((torch.ones_like(u).detach(), *others), reverse)  # of u = 1 what is written is the weight
    torch.testing.assert_close(w, gradients.view(len(QUERIES), D, L).mT, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reverse", [False, True])
def test_weights_through_a_convolution_are_the_gradients(tile, reverse):
    v, *others = inputs()
    generator = torch.Generator().manual_seed(2)
    taps, passed = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((D, 4), (L, D)))

    def convolved(v):
        padded = torch.cat([v.new_zeros(3, D), v.flip(0) if reverse else v])
        z = sum(taps[:, k] * padded[3 - k : 3 - k + L] for k in range(4))
        return passed * (z.flip(0) if reverse else z)

    y = scan(convolved(v.requires_grad_()), *others, reverse)
    gradients = torch.stack(
        [torch.autograd.grad(y[q, d], v, retain_graph=True)[0][:, d] for q in range(len(QUERIES)) for d in range(D)]
    )
    w = everything((torch.ones_like(v).detach(), *others), reverse, taps=taps, passed=passed)
    torch.testing.assert_close(w, gradients.view(len(QUERIES), D, L).mT, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reverse", [False, True])
def test_float32_after_a_long_sequence_that_forgets(reverse):
    """Step sizes add up to thousands, so that exponentials over- and underflow unless only differences enter."""
    queries = [5, 2000, 2999]
    exact = inputs(length=3000, queries=queries, step=8.0)
    single = [x.float() if x.is_floating_point() else x for x in exact]
    added = everything(single, reverse).sum(1)
    assert added.isfinite().all()
    torch.testing.assert_close(added.double(), scan(*exact, reverse), rtol=1e-5, atol=1e-5)


def test_a_query_sees_no_token_behind_it():
    given = inputs()
    t = torch.arange(L)
    behind = t > given[-1][:, None]
    assert (everything(given, False)[behind] == 0).all()
    assert (everything(given, True)[t < given[-1][:, None]] == 0).all()
    assert (everything(given, False)[~behind] != 0).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_the_gate_multiplies_what_a_query_reads(tile, reverse):
    given = inputs()
    gate = torch.rand(len(QUERIES), D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gated = attribute(*given, lambda x: x.sum(0), gate=gate, reverse=reverse)
    torch.testing.assert_close(gated, (gate[:, None] * everything(given, reverse)).sum(-1))


def test_shapes_and_positions_are_checked():
    u, step, A, B, C, index = inputs()
    with pytest.raises(BimbaError, match=r"B must be \(50, 4\).*received \(49, 4\)"):
        attribute(u, step, A, B[1:], C, index, lambda x: x.sum(0))
    with pytest.raises(BimbaError, match="strictly increasing"):
        attribute(u, step, A, B, C, index.flip(0), lambda x: x.sum(0))
