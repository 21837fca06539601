"""The scan of Mamba-2, state space duality (Dao & Gu 2024): one decay per head, so that chunks are matrix products.

For every head of P channels with the scalar A < 0, and h (P, N) = 0 before the first position::

    h[t] = exp(dt[t] A) h[t - 1] + dt[t] x[t] B[t]^T
    y[t] = h[t] C[t] + D x[t]

B and C are shared by the heads. :mod:`bimba.ops.ssd.reference` is this definition, one position at a time;
:mod:`bimba.ops.ssd.chunked` computes it, in time linear in L and without anything of size (L, L).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bimba.ops.ssd.op import run
from bimba.types import BimbaError

__all__ = ["CHUNK", "ssd"]

# Positions. With queries at one position in five, 64 and 128 take the same time on a CPU, 32 and 256 more: short chunks
# are many small products, long ones throw away more scores.
CHUNK = 128


def ssd(
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
    chunk_size: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Scan ``x`` with a state of float32 (float64 when x, dt, A, B or C is), whatever the dtypes and strides.

    First derivatives by reverse mode only: no forward mode, no second derivatives.

    Args:
        x: (B, L, H, P), H heads of P channels.
        dt: (B, L, H) step sizes as they are used, after bias and softplus.
        A: (H,).
        B: (B, L, N).
        C: (B, L, N); with ``query_index`` only those positions, (B, Q, N).
        D: (H,) skip connection.
        initial_state: (B, H, P, N), the state before the first position that is scanned; zeros if not given.
        reverse: scan from the last position to the first.
        query_index: (Q,) int64, strictly increasing; y is returned at these positions only.
        chunk_size: positions in work at a time; the state before each chunk is kept for the backward pass.

    Returns:
        y (B, L, H, P), or (B, Q, H, P) with ``query_index``, and the state after the last position that was scanned,
        (B, H, P, N); both in the state's dtype.

    Raises:
        BimbaError: shapes, dtypes or devices do not fit each other.
    """
    if x.dim() != 4 or B.dim() != 3:
        raise BimbaError(
            f"ssd: expected x (B, L, H, P) and B (B, L, N), received {tuple(x.shape)} and {tuple(B.shape)}."
        )
    if chunk_size < 1:
        raise BimbaError(f"ssd: chunk_size must be at least 1, received {chunk_size}.")
    if query_index is not None:
        _check_index(query_index, x.device)
    batch, length, heads, channels = x.shape
    states = B.shape[2]
    outputs = length if query_index is None else len(query_index)
    expected = {
        "x": (x, (batch, length, heads, channels)),
        "dt": (dt, (batch, length, heads)),
        "A": (A, (heads,)),
        "B": (B, (batch, length, states)),
        "C": (C, (batch, outputs, states)),
        "D": (D, (heads,)),
        "initial_state": (initial_state, (batch, heads, channels, states)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tensor.shape != shape or not tensor.is_floating_point() or tensor.device != x.device:
            raise BimbaError(
                f"ssd: {name} must be a real floating-point tensor {tuple(shape)} on {x.device}, "
                f"received {tensor.dtype} {tuple(tensor.shape)} on {tensor.device} "
                f"(x is {tuple(x.shape)}, B {tuple(B.shape)}, {outputs} positions asked for)."
            )
    tensors = (x, dt, A, B, C, D, initial_state)
    save = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    y, last_state, _ = run(*tensors, query_index, reverse, chunk_size, save)
    return y, last_state


def _check_index(query_index: Tensor, device: torch.device) -> None:
    is_tensor = isinstance(query_index, Tensor)
    if is_tensor and query_index.dim() == 1 and query_index.dtype == torch.int64 and query_index.device == device:
        return
    received = type(query_index).__name__
    if is_tensor:
        received = f"{query_index.dtype} {tuple(query_index.shape)} on {query_index.device}"
    raise BimbaError(f"ssd: query_index must be a (Q,) int64 tensor on {device}, received {received}.")
