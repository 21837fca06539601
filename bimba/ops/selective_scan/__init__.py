"""The selective scan (step [4]), the recurrence of Mamba, with the semantics of mamba_ssm's ``selective_scan_fn``.

For every channel d and state n, with h = 0 before the first position::

    h[t] = exp(delta[t] A) h[t - 1] + delta[t] B[t] u[t]
    y[t] = sum_n C[t] h[t] + D u[t],   then times silu(z[t])
"""

from __future__ import annotations

import torch
from torch import Tensor

from bimba.ops.backend import Registry
from bimba.ops.selective_scan.inputs import check_inputs, silu_gate

REGISTRY = Registry(__name__)


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
) -> Tensor:
    """Scan ``u`` with a state of float32 (float64 when an input is), whatever the inputs' dtypes and strides.

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

    Returns:
        y (B, D, L), or (B, D, Q) with ``query_index``, in u's dtype.
    """
    check_inputs(u, delta, A, B, C, D, z, delta_bias, query_index)
    options = {"delta_softplus": delta_softplus, "reverse": reverse, "query_index": query_index}
    chosen = REGISTRY.choose(backend, u, delta, A, B, C, D, delta_bias, **options)
    if B.dim() == 3:
        y = chosen.run(u, delta, A, B, C, D, delta_bias, **options)
    else:
        size = u.shape[1] // B.shape[1]
        parts = []
        for group in range(B.shape[1]):
            d = slice(group * size, (group + 1) * size)
            skip, bias = (None if x is None else x[d] for x in (D, delta_bias))
            parts.append(chosen.run(u[:, d], delta[:, d], A[d], B[:, group], C[:, group], skip, bias, **options))
        y = torch.cat(parts, dim=1)
    if z is not None:
        y = silu_gate(y, z)
    return y.to(u.dtype)
