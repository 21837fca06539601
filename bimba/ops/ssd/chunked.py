"""The scan in chunks (Dao & Gu 2024, Listing 1): linear in L, with memory for one chunk and one state.

Within a chunk the scan is attention with decaying weights, from the chunk's queries to its positions; what lies before
the chunk enters by the state, which goes from chunk to chunk. Unlike the listing, which makes all chunks at once, they
are computed one after the other: at 64 frames of the 7B model the weights of all chunks together would be gigabytes.
The forward pass keeps the state before each chunk; the backward pass computes the chunk again from it.

Within a chunk positions are in the order they are scanned, K of them with q queries; ``a`` are the logarithms of the
decays, and sums of them are never differences of other sums, which would lose the small ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def state_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 when any of these is."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial_state: Tensor | None,
    query_index: Tensor | None,
    reverse: bool,
    chunk_size: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, Q, H, P), the last state (B, H, P, N), and if ``save`` the state before each chunk, else nothing of it."""
    batch, length, heads, channels = x.shape
    y = x.new_empty(batch, C.shape[1], heads, channels, dtype=state_dtype(x, dt, A, B, C))
    shape = (batch, heads, channels, B.shape[2])
    state = y.new_zeros(shape) if initial_state is None else initial_state.to(y.dtype, copy=True)
    saved = y.new_empty(-(-length // chunk_size) if save else 0, *shape)
    for number, cut in enumerate(_cuts(length, query_index, chunk_size, reverse, x.device)):
        if save:
            saved[number] = state
        chunk = _Chunk.of(x, dt, A, B, C, cut, y.dtype)
        output = chunk.weights().mul_(chunk.scores()) @ chunk.v  # (B, H, q, P)
        output += chunk.decay_to_query[..., None] * chunk.read(state)
        output = output.transpose(1, 2)
        output += D.to(y.dtype)[:, None] * chunk.x.index_select(1, cut.places)
        y[:, cut.queries] = cut.turn(output)
        state = chunk.decay[..., None, None] * state + chunk.added()
    return y, state, saved


def backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    query_index: Tensor | None,
    reverse: bool,
    chunk_size: int,
    saved: Tensor,
    dy: Tensor,
    dlast: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of x, dt, A, B, C, D and the initial state, by the chain rule through :func:`forward`.

    The gradients of weights exp(sum of a) are gathered times the weights, as gradients of the sums.
    """
    dtype = saved.dtype
    dx, ddt, dB, dC = (torch.empty(given.shape, dtype=given.dtype, device=given.device) for given in (x, dt, B, C))
    dA, dD, D = torch.zeros_like(A, dtype=dtype), torch.zeros_like(D, dtype=dtype), D.to(dtype)
    dstate = dlast.to(dtype, copy=True)  # without a position it is what is returned, and an operator's own
    cuts = list(_cuts(x.shape[1], query_index, chunk_size, reverse, x.device))
    for number, cut in reversed(list(enumerate(cuts))):
        chunk, state = _Chunk.of(x, dt, A, B, C, cut, dtype), saved[number]
        dout = cut.turn(dy[:, cut.queries]).to(dtype)  # (B, q, H, P)
        dout_of_head = dout.transpose(1, 2)  # (B, H, q, P)

        # Within the chunk: y = (weights scores) v.
        weights = chunk.weights()
        through_weights = weights * (dout_of_head @ chunk.v.mT)  # (B, H, q, K)
        dscores = through_weights.sum(1)  # (B, q, K)
        scores = chunk.scores()
        dsums = through_weights.mul_(scores)  # (B, H, q, K), of sums from a position to a query
        dv = weights.mul_(scores).mT @ dout_of_head  # (B, H, K, P)
        dC_chunk, dB_chunk = dscores @ chunk.B, dscores.mT @ chunk.C
        # a[l] is in the sums from each position before l to each query not before l.
        da = (dsums.cumsum(-1) - dsums).masked_fill_(~chunk.seen, 0).sum(2)  # (B, H, K)

        # From the state before: y = decay_to_query (state C).
        weighted = chunk.decay_to_query[..., None] * dout_of_head  # (B, H, q, P)
        to_queries = (weighted * chunk.read(state)).sum(-1)  # (B, H, q), of the sums from the start to each query
        da += to_queries @ chunk.seen.to(dtype)
        weighted = weighted.transpose(1, 2).flatten(2)  # (B, q, H P)
        dC_chunk += weighted @ state.flatten(1, 2)
        dstate_before = (weighted.mT @ chunk.C).view(state.shape)

        # The state after: decay state + (decay_to_end v) B.
        dstate_before += chunk.decay[..., None, None] * dstate
        da += (chunk.decay * (dstate * state).sum((2, 3)))[..., None]
        pushed = (chunk.B @ dstate.flatten(1, 2).mT).view(chunk.x.shape).transpose(1, 2)  # (B, H, K, P)
        pushed = pushed * chunk.decay_to_end[..., None]
        dv += pushed
        to_end = (pushed * chunk.v).sum(-1)  # (B, H, K), of the sums from each position to the end
        da += to_end.cumsum(-1) - to_end
        dB_chunk += chunk.pushed_v() @ dstate.flatten(1, 2)

        da, dv = da.transpose(1, 2), dv.transpose(1, 2)  # (B, K, H), (B, K, H, P)
        dx_chunk = dv * chunk.dt[..., None]
        dx_chunk.index_add_(1, cut.places, dout * D[:, None])
        dD += (dout * chunk.x.index_select(1, cut.places)).sum((0, 1, 3))
        dA += (da * chunk.dt).sum((0, 1))
        ddt[:, cut.positions] = cut.turn(da * A.to(dtype) + (dv * chunk.x).sum(-1)).to(ddt.dtype)
        dx[:, cut.positions] = cut.turn(dx_chunk).to(dx.dtype)
        dB[:, cut.positions] = cut.turn(dB_chunk).to(dB.dtype)
        dC[:, cut.queries] = cut.turn(dC_chunk).to(dC.dtype)
        dstate = dstate_before
    return dx, ddt, dA, dB, dC, dD, dstate


@dataclass(frozen=True)
class _Cut:
    """Where a chunk lies."""

    positions: slice
    queries: slice  # of the outputs
    places: Tensor  # (q,), of the queries in the chunk, in the order of the scan
    reverse: bool

    def turn(self, x: Tensor) -> Tensor:
        """(B, K or q, ...) from the sequence's order to the scan's, or back."""
        return x.flip(1) if self.reverse else x


def _cuts(
    length: int, query_index: Tensor | None, chunk_size: int, reverse: bool, device: torch.device
) -> Iterator[_Cut]:
    """In the order of the scan; one of them may be shorter."""
    bounds = [*range(0, length, chunk_size), length]
    if query_index is None:
        query_index, before = torch.arange(length, device=device), bounds
    else:
        before = torch.searchsorted(query_index, torch.tensor(bounds, device=device)).tolist()
    numbers = range(len(bounds) - 1)
    for i in reversed(numbers) if reverse else numbers:
        positions, queries = slice(bounds[i], bounds[i + 1]), slice(before[i], before[i + 1])
        places = query_index[queries]
        places = (positions.stop - 1 - places).flip(0) if reverse else places - positions.start
        yield _Cut(positions, queries, places, reverse)


@dataclass(frozen=True)
class _Chunk:
    """A chunk's inputs in the state's dtype, and what follows from the decays alone."""

    x: Tensor  # (B, K, H, P)
    dt: Tensor  # (B, K, H)
    B: Tensor  # (B, K, N)
    C: Tensor  # (B, q, N)
    v: Tensor  # (B, H, K, P): dt x
    a: Tensor  # (B, H, K): dt A
    seen: Tensor  # (q, K): the position is not after the query
    decay: Tensor  # (B, H), of the chunk as a whole
    decay_to_query: Tensor  # (B, H, q), of the state before the chunk
    decay_to_end: Tensor  # (B, H, K), after each position

    @classmethod
    def of(cls, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, cut: _Cut, dtype: torch.dtype) -> _Chunk:
        x, dt, B = (cut.turn(given[:, cut.positions]).to(dtype) for given in (x, dt, B))
        C = cut.turn(C[:, cut.queries]).to(dtype)
        a = (dt * A.to(dtype)).transpose(1, 2)
        from_start = a.cumsum(-1)
        return cls(
            x, dt, B, C,
            v=(x * dt[..., None]).transpose(1, 2),
            a=a,
            seen=torch.arange(x.shape[1], device=x.device) <= cut.places[:, None],
            decay=from_start[..., -1].exp(),
            decay_to_query=from_start.index_select(2, cut.places).exp(),
            decay_to_end=_sums_after(a).exp(),
        )  # fmt: skip

    def weights(self) -> Tensor:
        """(B, H, q, K): how much of a position is left when the query reads, 0 after it."""
        between = _sums_after(self.a[:, :, None].masked_fill(~self.seen, 0))
        return between.exp_().masked_fill_(~self.seen, 0)

    def scores(self) -> Tensor:
        """(B, 1, q, K)."""
        return (self.C @ self.B.mT)[:, None]

    def read(self, state: Tensor) -> Tensor:
        """What the queries read of a state, (B, H, q, P)."""
        flat = self.C @ state.flatten(1, 2).mT  # (B, q, H P)
        return flat.unflatten(2, state.shape[1:3]).transpose(1, 2)

    def pushed_v(self) -> Tensor:
        """(B, K, H P): what is left of v at the end."""
        return (self.v * self.decay_to_end[..., None]).transpose(1, 2).flatten(2)

    def added(self) -> Tensor:
        """What the chunk adds to the state, (B, H, P, N)."""
        return (self.pushed_v().mT @ self.B).unflatten(1, (self.v.shape[1], self.v.shape[3]))


def _sums_after(a: Tensor) -> Tensor:
    """sums[j] = a[j + 1] + ... + a[K - 1], over the last axis."""
    return F.pad(a[..., 1:], (0, 1)).flip(-1).cumsum(-1).flip(-1)
