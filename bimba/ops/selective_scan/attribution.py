r"""Which token wrote how much of what a query reads: the scan taken apart, exactly.

With step size, A, B and C given, the scan is linear in u. Unrolled::

    y[q, d] = sum over t <= q of w[q, t, d] u[t, d]      (+ D[d] u[q, d], which is the query's own)
    w[q, t, d] = sum over n of C[q, n] exp(A[d, n] (S[q, d] - S[t, d])) step[t, d] B[t, n]

where S[t, d] = step[0, d] + ... + step[t, d]. Token t wrote x[q, t, d] = w[q, t, d] u[t, d] of y[q, d]; over t these
are y without the skip, to rounding, and w is the gradient dy[q, d] / du[t, d]. A scan in reverse is the same of the
flipped sequence. Step, B and C are themselves made of the tokens: that a token changes what others write is not
counted, as it is not when attention is drawn.

How it is computed: x has Q L D entries of N terms each, so it is made a tile of queries and tokens at a time and
reduced over d at once. Where all tokens of a tile stand before its queries, the exponential splits at the first query::

    exp(A (S[q] - S[t])) = exp(A (S[q] - S[first])) exp(A (S[first] - S[t]))

Both exponents are at most 0 (A is negative, steps are positive), so nothing overflows, and what underflows is as small
as its product. So a tile takes a matrix product of N terms per channel and few exponentials. A tile with tokens among
its queries takes the exponential of each difference, one state at a time. S is summed in float64: after 50,000 tokens
a float32 sum has lost the last ones' steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bimba.ops.selective_scan.inputs import check_query_index, state_dtype
from bimba.types import BimbaError

TILE_QUERIES = 16
TILE_ENTRIES = 2**22  # of x, in work at a time: queries x tokens x channels

Reduce = Callable[[Tensor, slice], Tensor]  # x (q, t, D) and which queries these are -> (q, t)


def attribute(
    u: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    query_index: Tensor,
    reduce: Reduce,
    *,
    reverse: bool = False,
) -> Tensor:
    """What each token wrote of what each query reads, in one direction of one sequence.

    Args:
        u: (L, D).
        step: (L, D), the step size with its bias and after softplus: positive.
        A: (D, N), negative.
        B: (L, N).
        C: (Q, N), at the queries.
        query_index: (Q,) int64, strictly increasing.
        reduce: makes one number per query and token of x (q, t, D); its second argument says which of the Q queries.
        reverse: as of the scan: a query reads the tokens behind it.

    Returns:
        (Q, L) in the state's dtype, 0 where a query cannot see a token. Takes Q L D (N + 1) multiplications and what
        ``reduce`` takes; memory for the result, for S, and for one tile.

    Raises:
        BimbaError: shapes that do not fit each other, or positions outside the sequence.
    """
    (L, D), N, Q = u.shape, A.shape[1], len(query_index)
    expected = {"step": (step, (L, D)), "A": (A, (D, N)), "B": (B, (L, N)), "C": (C, (Q, N))}
    for name, (x, shape) in expected.items():
        if tuple(x.shape) != shape:
            raise BimbaError(
                f"attribute: {name} must be {shape} for u {(L, D)}, N = {N} and {Q} queries, received {tuple(x.shape)}."
            )
    check_query_index(query_index, L)
    dtype = state_dtype(u, step, A, B, C)
    u, step, A, B, C = (x.to(dtype) for x in (u, step, A, B, C))
    if not reverse:
        return _forward(u, step, A, B, C, query_index, reduce)
    flipped = [x.flip(0) for x in (u, step)] + [A, B.flip(0), C.flip(0)]

    def reduce_flipped(x: Tensor, queries: slice) -> Tensor:
        return reduce(x.flip(0), slice(Q - queries.stop, Q - queries.start)).flip(0)

    return _forward(*flipped, L - 1 - query_index.flip(0), reduce_flipped).flip(0, 1)


def _forward(u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, query_index: Tensor, reduce: Reduce) -> Tensor:
    (L, D), Q = u.shape, len(query_index)
    S = step.double().cumsum(0)
    written = step * u  # (L, D): what B then spreads over the states
    scores = u.new_zeros(Q, L)
    tokens = max(1, TILE_ENTRIES // (TILE_QUERIES * D))
    for first in range(0, Q, TILE_QUERIES):
        queries = slice(first, min(first + TILE_QUERIES, Q))
        positions = query_index[queries]
        start, stop = int(positions[0]), int(positions[-1]) + 1
        bounds = [*range(0, start, tokens), *range(start, stop, tokens), stop]
        for t0, t1 in zip(bounds, bounds[1:]):
            t = slice(t0, t1)
            tile = _before if t1 <= start else _among
            x = tile(S, A, B[t], C[queries], t, positions)  # (q, t, D)
            scores[queries, t] = reduce(x * written[t], queries)
    return scores


def _before(S: Tensor, A: Tensor, B: Tensor, C: Tensor, t: slice, positions: Tensor) -> Tensor:
    """w / step (q, t, D) of tokens that all stand before the queries."""
    first = S[positions[0]]
    from_query = torch.exp((S[positions] - first).to(A.dtype)[..., None] * A) * C[:, None]  # (q, D, N)
    from_token = torch.exp((first - S[t]).to(A.dtype)[..., None] * A) * B[:, None]  # (t, D, N)
    return torch.einsum("qdn,tdn->qtd", from_query, from_token)


def _among(S: Tensor, A: Tensor, B: Tensor, C: Tensor, t: slice, positions: Tensor) -> Tensor:
    """w / step (q, t, D) of tokens among the queries: those behind a query are 0 for it."""
    seen = torch.arange(t.start, t.stop, device=S.device) <= positions[:, None]  # (q, t)
    gap = (S[positions, None] - S[None, t]).to(A.dtype).clamp(min=0)  # behind a query its exponential would overflow
    w = torch.zeros_like(gap)
    for n in range(A.shape[1]):
        w += torch.exp(gap * A[:, n]) * (C[:, None, n, None] * B[None, :, n, None])
    return w * seen[..., None]
