"""The definition, one position at a time. Slow and plain: the chunked scan is tested against it."""

from __future__ import annotations

import torch
from torch import Tensor


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    query_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`bimba.ops.ssd.ssd`, of inputs that have the state's dtype, with the gradients of autograd."""
    batch, length, heads, channels = x.shape
    state = x.new_zeros(batch, heads, channels, B.shape[2]) if initial_state is None else initial_state
    positions = range(length) if query_index is None else query_index.tolist()
    output_at = {position: number for number, position in enumerate(positions)}
    y: dict[int, Tensor] = {}
    for t in reversed(range(length)) if reverse else range(length):
        added = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None]  # (B, H, P, N)
        state = torch.exp(dt[:, t] * A)[:, :, None, None] * state + added
        if t in output_at:
            number = output_at[t]
            y[number] = (state * C[:, number, None, None]).sum(-1) + D[:, None] * x[:, t]
    if not y:
        return x.new_empty(batch, 0, heads, channels), state
    return torch.stack([y[number] for number in sorted(y)], dim=1), state
