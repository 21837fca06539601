"""What every backend of the scan shares: the form of its inputs, the checks, the state's dtype, the gate."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bimba.types import BimbaError

_HAS_NUMPY = find_spec("numpy") is not None


@dataclass(frozen=True)
class Scan:
    """One call of the scan as backends take it: a row of channels or states per token, R directions of scan stacked.

    Attributes:
        u: (R, B, L, D).
        delta: (R, B, L, D).
        A: (R, D, N).
        B: (R, B, L, N).
        C: (R, B, Q, N).
        D: (R, D).
        delta_bias: (R, D).
        initial_state: (R, B, D, N), in the state's dtype; None: zeros.
        query_index: (Q,) int64, strictly increasing, shared by the directions; None: every position, Q = L.
        delta_softplus: apply softplus to delta (after the bias).
        reverse: direction 0 scans from the last token to the first; a direction 1 goes the other way than direction 0.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None
    query_index: Tensor | None
    delta_softplus: bool
    reverse: bool

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        """R, B, L, D, N, Q."""
        return (*self.u.shape, self.A.shape[2], self.C.shape[2])

    @property
    def dtype(self) -> torch.dtype:
        """The state's: float32, or float64 when u, delta, A, B or C is."""
        return state_dtype(self.u, self.delta, self.A, self.B, self.C)

    def is_reverse(self, direction: int) -> bool:
        return self.reverse != (direction == 1)


def state_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float32, or float64 when any of these is: u, delta, A, B or C."""
    wide = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if wide else torch.float32


def rows(x: Tensor) -> Tensor:
    """With neighbours in memory on the last axis; no copy of what is laid out so already."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def silu_gate(y: Tensor, z: Tensor) -> Tensor:
    """y silu(z)."""
    return y * F.silu(z.to(state_dtype(y, z)))


def check_inputs(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    query_index: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    """Raise BimbaError when shapes, dtypes or devices do not fit each other."""
    if u.dim() != 3:
        raise BimbaError(f"selective_scan: u must be (B, D, L), received shape {tuple(u.shape)}.")
    if A.dim() != 2:
        raise BimbaError(f"selective_scan: A must be (D, N), received shape {tuple(A.shape)}.")
    if A.shape[1] == 0:
        raise BimbaError("selective_scan: A must have at least one state, received N = 0.")
    batch, channels, length = u.shape
    states = A.shape[1]
    if query_index is not None:
        _check_index_tensor(query_index, u.device)
    outputs = length if query_index is None else query_index.shape[0]
    groups = (B.shape[1],) if B.dim() == 4 else ()
    expected = {
        "delta": (delta, (batch, channels, length)),
        "A": (A, (channels, states)),
        "B": (B, (batch, *groups, states, length)),
        "C": (C, (batch, *groups, states, outputs)),
        "D": (D, (channels,)),
        "z": (z, (batch, channels, outputs)),
        "delta_bias": (delta_bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, states)),
    }
    context = f"u is {tuple(u.shape)}, N = {states}, positions asked for: {outputs}"
    _check_tensors({"u": (u, tuple(u.shape)), **expected}, u, context)
    if groups and (groups[0] < 1 or channels % groups[0]):
        raise BimbaError(f"selective_scan: {channels} channels cannot be split into the {groups[0]} groups of B.")


def check_scan(scan: Scan) -> None:
    """Raise BimbaError when the rows of a :class:`Scan` do not fit each other."""
    if scan.u.dim() != 4 or scan.A.dim() != 3 or scan.u.shape[0] not in (1, 2):
        raise BimbaError(
            "selective_scan: expected rows u (R, B, L, D) and A (R, D, N) of R = 1 or 2 directions, "
            f"received {tuple(scan.u.shape)} and {tuple(scan.A.shape)}."
        )
    if scan.query_index is not None:
        _check_index_tensor(scan.query_index, scan.u.device)
    R, B, L, D = scan.u.shape
    N = scan.A.shape[2]
    Q = L if scan.query_index is None else scan.query_index.shape[0]
    _check_tensors(
        {
            "u": (scan.u, (R, B, L, D)),
            "delta": (scan.delta, (R, B, L, D)),
            "A": (scan.A, (R, D, N)),
            "B": (scan.B, (R, B, L, N)),
            "C": (scan.C, (R, B, Q, N)),
            "D": (scan.D, (R, D)),
            "delta_bias": (scan.delta_bias, (R, D)),
            "initial_state": (scan.initial_state, (R, B, D, N)),
        },
        scan.u,
        f"u is {(R, B, L, D)}, N = {N}, positions asked for: {Q}",
    )


def _check_tensors(expected: dict[str, tuple[Tensor | None, tuple[int, ...]]], u: Tensor, context: str) -> None:
    """Shape, a real dtype, and u's device, of each tensor that is given."""
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise BimbaError(
                f"selective_scan: {name} must have shape {shape}, received {tuple(tensor.shape)} ({context})."
            )
        if not tensor.is_floating_point():
            raise BimbaError(f"selective_scan: {name} must be a real floating-point tensor, received {tensor.dtype}.")
        if tensor.device != u.device:
            raise BimbaError(f"selective_scan: {name} is on {tensor.device}, u on {u.device}; put both on one device.")


def _check_index_tensor(query_index: Tensor, device: torch.device) -> None:
    if not isinstance(query_index, Tensor) or query_index.dim() != 1 or query_index.dtype != torch.int64:
        received = (
            f"shape {tuple(query_index.shape)}, {query_index.dtype}"
            if isinstance(query_index, Tensor)
            else type(query_index).__name__
        )
        raise BimbaError(f"selective_scan: query_index must be a (Q,) int64 tensor, received {received}.")
    if query_index.device != device:
        raise BimbaError(
            f"selective_scan: query_index is on {query_index.device}, u on {device}; put both on one device."
        )


def check_query_index(query_index: Tensor, length: int) -> None:
    """Raise BimbaError unless the values are increasing positions of the sequence. Waits once for a GPU's answer."""
    if query_index.numel() == 0:
        return
    # Of a CPU's tensor by numpy, in a quarter of the time, which is a hundredth of a short scan; torch works without.
    values: Any = query_index.numpy() if _HAS_NUMPY and query_index.device.type == "cpu" else query_index
    first, last = values[0], values[-1]
    increasing = (values[1:] > values[:-1]).all()
    if bool(increasing & (first >= 0) & (last < length)):
        return
    if not bool(increasing):
        raise BimbaError("selective_scan: query_index must be strictly increasing; sort it and drop repeats.")
    raise BimbaError(
        f"selective_scan: query_index must lie in [0, {length - 1}], received values from {int(first)} to {int(last)}."
    )
