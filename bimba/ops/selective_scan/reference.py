"""The scan's definition, one position at a time. Slow and plain: every other backend is tested against it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bimba.ops.backend import Backend
from bimba.ops.selective_scan.inputs import state_dtype


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    *,
    delta_softplus: bool,
    reverse: bool,
    query_index: Tensor | None,
) -> Tensor:
    """(B, D, L) -> (B, D, L) or (B, D, Q): everything but the gate."""
    dtype = state_dtype(u, delta, A, B, C)
    u, delta, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype).unsqueeze(-1)
    if delta_softplus:
        delta = F.softplus(delta)

    # unbind, not x[:, :, t]: indexing would back-propagate a tensor of full length per position, quadratic in L.
    steps = list(enumerate(zip(u.unbind(-1), delta.unbind(-1), B.unbind(-1), strict=True)))
    positions = range(u.shape[-1]) if query_index is None else query_index.tolist()
    C_at = dict(zip(positions, C.unbind(-1), strict=True))
    y_at: dict[int, Tensor] = {}
    state = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])  # (B, D, N)
    for t, (u_t, delta_t, B_t) in reversed(steps) if reverse else steps:  # (B, D), (B, D), (B, N)
        decay = torch.exp(delta_t.unsqueeze(-1) * A)
        state = decay * state + (delta_t * u_t).unsqueeze(-1) * B_t.unsqueeze(1)
        if t in C_at:
            y_at[t] = (state * C_at[t].unsqueeze(1)).sum(-1)
    u_at = u if query_index is None else u.index_select(2, query_index)
    y = torch.stack([y_at[t] for t in positions], dim=-1) if y_at else torch.zeros_like(u_at)
    return y if D is None else y + D.to(dtype).unsqueeze(-1) * u_at


BACKEND = Backend(run=scan, priority=0)
