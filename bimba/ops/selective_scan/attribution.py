"""Which token wrote how much of what a query reads: the scan taken apart, exactly.

With step size, A, B and C given, the scan is linear in u. Unrolled::

    y[q, d] = sum over t <= q of w[q, t, d] u[t, d]      (+ D[d] u[q, d], which is the query's own)
    w[q, t, d] = sum over n of C[q, n] exp(A[d, n] (S[q, d] - S[t, d])) step[t, d] B[t, n]

where S[t, d] = step[0, d] + ... + step[t, d]. Token t wrote x[q, t, d] = w[q, t, d] u[t, d] of y[q, d]; over t these
are y without the skip, to rounding, and w is the gradient dy[q, d] / du[t, d]. A scan in reverse is the same of the
flipped sequence. Step, B and C are themselves made of the tokens: that a token changes what others write is not
counted, as it is not when attention is drawn.

In a Mamba layer u = silu(z) with z = a causal convolution of what enters the layer, v. As silu(z) = sigmoid(z) z, that
is linear too once sigmoid(z), the share that is ``passed``, is given; so what is written is followed back by the taps::

    x[q, s, d] = (sum over k of w[q, s + k, d] passed[s + k, d] taps[d, k]) v[s, d]

These add up to y without the skip and what the convolution's bias writes.

How it is computed: x has Q L D entries of N terms each, so it is made a tile of queries and tokens at a time and
reduced over d at once. The tokens of a tile stand at or before its first query, where the exponential splits::

    exp(A (S[q] - S[t])) = exp(A (S[q] - S[first])) exp(A (S[first] - S[t]))

Both exponents are at most 0 (A is negative, steps are positive), so nothing overflows, and what underflows is as small
as its product. So a tile is a matrix product of N terms per channel, and few exponentials. What stands behind the first
query concerns the others only, whose two halves are tiled likewise. S is summed in float64: after 50,000 tokens a
float32 sum has lost the last ones' steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bimba.ops.selective_scan.inputs import check_query_index, state_dtype
from bimba.types import BimbaError

TILE_QUERIES = 64
TILE_ENTRIES = 2**22  # queries x tokens x channels, and tokens x channels x states, in work at a time


def attribute(
    u: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    query_index: Tensor,
    reduce: Callable[[Tensor], Tensor],
    *,
    gate: Tensor | None = None,
    taps: Tensor | None = None,
    passed: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """What each token wrote of what each query reads, in one direction of one sequence.

    Args:
        u: (L, D), what enters the scan; with ``taps``, what enters the convolution before it.
        step: (L, D), the step size with its bias and after softplus: positive.
        A: (D, N), negative.
        B: (L, N).
        C: (Q, N), at the queries.
        query_index: (Q,) int64, strictly increasing.
        reduce: makes one number per query and token, (q, t), of x (D, q, t).
        gate: (Q, D), what x is multiplied by before.
        taps: (D, K), by which channel d of a token enters the K scan positions from its own on; None: its own by 1.
        passed: (L, D), what the scan's input is multiplied by behind the convolution; None: 1.
        reverse: as of the scan: a query reads the tokens behind it, and the taps reach the other way.

    Returns:
        (Q, L) in the state's dtype, 0 where a query cannot see a token. Takes about Q L D N / 2 multiplications,
        L D N log Q exponentials and what ``reduce`` takes; memory for the result, for S, and for one tile.

    Raises:
        BimbaError: shapes that do not fit each other, or positions outside the sequence.
    """
    (L, D), N, Q = u.shape, A.shape[1], len(query_index)
    gate = u.new_ones(Q, D) if gate is None else gate
    taps = u.new_ones(D, 1) if taps is None else taps
    passed = torch.ones_like(u) if passed is None else passed
    K = taps.shape[1]
    expected = {
        "step": (step, (L, D)),
        "B": (B, (L, N)),
        "C": (C, (Q, N)),
        "gate": (gate, (Q, D)),
        "taps": (taps, (D, K)),
        "passed": (passed, (L, D)),
    }
    for name, (x, shape) in expected.items():
        if tuple(x.shape) != shape:
            raise BimbaError(
                f"attribute: {name} must be {shape} for u {(L, D)}, A {tuple(A.shape)} and {Q} queries, "
                f"received {tuple(x.shape)}."
            )
    check_query_index(query_index, L)
    dtype = state_dtype(u, step, A, B, C)
    u, step, A, B, C, gate, taps, passed = (x.to(dtype) for x in (u, step, A, B, C, gate, taps, passed))
    if reverse:
        u, step, B, C, gate, passed = (x.flip(0) for x in (u, step, B, C, gate, passed))
        query_index = L - 1 - query_index.flip(0)

    S = step.mT.double().cumsum(1)  # (D, L)
    u, B, written = u.mT, B.mT, (step * passed).mT  # (D, L), (N, L), (D, L)
    read = gate.mT[..., None] * C  # (D, Q, N)
    S_queries, positions = S[:, query_index], query_index.tolist()  # (D, Q)
    scores = u.new_zeros(Q, L)
    for q, t in _tiles(positions, max(1, TILE_ENTRIES // (D * max(TILE_QUERIES, N))), reach=K - 1):
        first = S_queries[:, q.start, None]  # (D, 1)
        from_query = torch.exp((S_queries[:, q] - first).to(dtype)[..., None] * A[:, None])  # (D, q, N)
        r = slice(t.start, min(t.stop + K - 1, positions[q.start] + 1))  # where these tokens enter the scan
        entered = torch.exp((first - S[:, r]).to(dtype)[:, None] * A[..., None])  # (D, N, r)
        entered *= written[:, None, r] * B[:, r]
        from_token = torch.zeros_like(entered[..., : t.stop - t.start])  # (D, N, t)
        for k in range(K):
            part = entered[..., k : k + t.stop - t.start]
            from_token[..., : part.shape[-1]] += taps[:, k, None, None] * part
        from_token *= u[:, None, t]
        scores[q, t] = reduce(torch.bmm(from_query * read[:, q], from_token))
    return scores.flip(0, 1) if reverse else scores


def _tiles(positions: Sequence[int], num_tokens: int, reach: int) -> Iterator[tuple[slice, slice]]:
    """Pairs of queries and tokens which together hold each query with all tokens up to itself, once.

    A token of a tile enters the scan up to ``reach`` positions behind its own, and there at or before the tile's first
    query; or behind it, if the tile has but this one, which does not see that.
    """
    todo = [(0, len(positions), 0)]  # queries from, to, and the first token they still lack
    while todo:
        q0, q1, t0 = todo.pop()
        if q0 == q1:
            continue
        stop = max(t0, positions[q0] + 1 - reach)
        for q in range(q0, q1, TILE_QUERIES):
            for t in range(t0, stop, num_tokens):
                yield slice(q, min(q + TILE_QUERIES, q1)), slice(t, min(t + num_tokens, stop))
        for t in range(stop, positions[q0] + 1, num_tokens):
            yield slice(q0, q0 + 1), slice(t, min(t + num_tokens, positions[q0] + 1))
        middle = (q0 + 1 + q1) // 2
        todo += [(q0 + 1, middle, stop), (middle, q1, stop)]
