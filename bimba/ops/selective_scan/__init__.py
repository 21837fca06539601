"""The selective scan (step [4]), the recurrence of Mamba, with the semantics of mamba_ssm's ``selective_scan_fn``.

For every channel d and state n, with h = 0 before the first position::

    h[t] = exp(delta[t] A) h[t - 1] + delta[t] B[t] u[t]
    y[t] = sum_n C[t] h[t] + D u[t],   then times silu(z[t])
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bimba.ops.selective_scan import op
from bimba.ops.selective_scan.inputs import check_inputs, silu_gate
from bimba.ops.selective_scan.op import REGISTRY
from bimba.types import BimbaError

__all__ = ["REGISTRY", "scan_directions", "selective_scan"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    query_index: Tensor | None = None,
    backend: str = "auto",
    *,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
) -> Any:
    """Scan ``u`` with a state of float32 (float64 when u, delta, A, B or C is), whatever their dtypes and strides.

    First derivatives by reverse mode only: no forward mode, no second derivatives.

    Args:
        u: (B, D, L).
        delta: (B, D, L) step sizes, before ``delta_bias`` and softplus.
        A: (D, N).
        B: (B, N, L), or (B, G, N, L) with G groups of D / G neighbouring channels.
        C: like B; with ``query_index`` only those positions, (B, N, Q).
        D: (D,) skip connection.
        z: (B, D, L) gate; with ``query_index`` (B, D, Q).
        delta_bias: (D,), added to delta.
        delta_softplus: apply softplus to delta (after the bias).
        reverse: scan from the last position to the first.
        query_index: (Q,) int64, strictly increasing; y is returned at these positions only.
        backend: "auto", or the name of a file in this folder.
        initial_state: (B, D, N), the state before the first position that is scanned; zeros if not given. What was
            ``last_state`` of a piece goes on into the next, so that a sequence can be scanned piece by piece.
        return_last_state: return (y, last_state).

    Returns:
        y (B, D, L), or (B, D, Q) with ``query_index``, in u's dtype; with ``return_last_state`` also the state after
        the last position that was scanned, (B, D, N) in the state's dtype.

    Raises:
        BimbaError: shapes, dtypes or devices do not fit each other, or the backend asked for cannot run.
    """
    if not isinstance(backend, str):
        raise BimbaError(f"selective_scan: backend must be the name of one, or 'auto'; received {backend!r}.")
    check_inputs(u, delta, A, B, C, D, z, delta_bias, query_index, initial_state)
    groups = 1 if B.dim() == 3 else B.shape[1]
    size = u.shape[1] // groups
    parts, last_states = [], []
    for group in range(groups):  # of neighbouring channels, each with its own B and C
        d = slice(group * size, (group + 1) * size)
        B_group, C_group = (x if x.dim() == 3 else x[:, group] for x in (B, C))
        skip, bias = (None if x is None else x[d].unsqueeze(0) for x in (D, delta_bias))
        y, last_state = scan_directions(
            u[None, :, d].mT, delta[None, :, d].mT, A[None, d], B_group[None].mT, C_group[None].mT, skip, bias,
            initial_state=None if initial_state is None else initial_state[None, :, d],
            delta_softplus=delta_softplus, reverse=reverse, query_index=query_index, backend=backend,
        )  # fmt: skip
        parts.append(y[0].mT)
        last_states.append(last_state[0])
    y = parts[0] if groups == 1 else torch.cat(parts, dim=1)
    y = (y if z is None else silu_gate(y, z)).to(u.dtype)
    return (y, torch.cat(last_states, dim=1)) if return_last_state else y


def scan_directions(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    query_index: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The scan for the layer around it: rows of tokens, one direction or two at once, one launch on a GPU.

    Args: as of :class:`bimba.ops.selective_scan.inputs.Scan`.

    Returns:
        y (R, B, Q, D) and the last state (R, B, D, N), both in the state's dtype.

    Raises:
        BimbaError: as :func:`selective_scan`.
    """
    tensors = (u, delta, A, B, C, D, delta_bias, initial_state)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    y, last_state, _ = op.run(*tensors, query_index, delta_softplus, reverse, backend, save)
    return y, last_state
