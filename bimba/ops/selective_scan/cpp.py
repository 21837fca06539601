"""The scan as one compiled loop (``csrc/scan.cpp``): sixteen channels a vector, states in registers, float32 inside.

Compiled on first use. Nothing of size (B, D, L, N) exists: the forward pass keeps the state every 64 positions, if
gradients are wanted, and the backward pass recomputes the rest.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
import torch
from torch import Tensor

from bimba.ops.backend import Backend
from bimba.ops.extension import build
from bimba.ops.selective_scan.inputs import Scan
from bimba.types import BimbaError

_TILE, _LANES = 64, 16  # as in scan.cpp
_SOURCES = Path(__file__).parent / "csrc"
_Strides = ctypes.c_int64 * 2
_LOADED_IN = os.getpid()


class _Arguments(ctypes.Structure):
    """``Arguments`` of scan.cpp, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "states", "outputs", "threads", "ranges")),
        *((name, ctypes.c_int64) for name in ("softplus", "reverse", "bfloat16")),
        *((name, ctypes.c_void_p) for name in ("u", "delta", "B", "C")),
        *((f"{name}_strides", _Strides) for name in ("u", "delta", "B", "C")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "bias", "query_index", "y", "starts", "dy")),
        *((name, ctypes.c_void_p) for name in ("du", "ddelta", "dA", "dD", "dbias", "dB", "dC")),
    ]


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled functions, or why there are none."""
    try:
        return build("bimba_scan", [_SOURCES / "scan.cpp"], [_SOURCES / "vec.h"])
    except BimbaError as error:
        return str(error)


class _Inputs:
    """The scan's inputs as the kernel takes them; keeps alive what its pointers point to."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        reverse: bool,
        query_index: Tensor | None,
    ) -> None:
        half = all(x.dtype == torch.bfloat16 for x in (u, delta, B, C))
        dtype = torch.bfloat16 if half else torch.float32
        self.tensors = {name: _rows(x, dtype) for name, x in (("u", u), ("delta", delta), ("B", B), ("C", C))}
        self.tensors["A"] = A.detach().float().t().contiguous()  # (N, D)
        for name, x in (("D", D), ("bias", delta_bias)):
            if x is not None:
                self.tensors[name] = x.detach().float().contiguous()
        if query_index is not None:
            self.tensors["query_index"] = query_index.contiguous()
        self.batch, self.channels, self.length = u.shape
        self.states, self.outputs = A.shape[1], C.shape[2]
        self.options = {"softplus": int(delta_softplus), "reverse": int(reverse), "bfloat16": int(half)}

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device="cpu")

    def new_starts(self) -> Tensor:
        """Memory for the states before each tile."""
        tiles, vectors = -(-self.length // _TILE), -(-self.channels // _LANES)
        return self.new(self.batch, tiles, vectors, self.states, _LANES)

    @property
    def ranges(self) -> int:
        """Into how many ranges channels are split: samples are dealt to threads first, these only if they are few."""
        vectors = -(-self.channels // _LANES)
        return max(1, min(vectors, -(-_threads() // max(1, self.batch))))

    def call(self, function: str, **outputs: Tensor) -> None:
        """Runs a function of scan.cpp, which writes to ``outputs``."""
        arguments = _Arguments(
            batch=self.batch, length=self.length, channels=self.channels, states=self.states, outputs=self.outputs,
            threads=_threads(), ranges=self.ranges, **self.options,
        )  # fmt: skip
        for name, x in {**self.tensors, **outputs}.items():
            setattr(arguments, name, x.data_ptr())
        if "query_index" in self.tensors and self.outputs == 0:
            arguments.query_index = ctypes.addressof(arguments)  # of no element: not null, which means every position
        for name in ("u", "delta", "B", "C"):
            setattr(arguments, f"{name}_strides", _Strides(*self.tensors[name].stride()[:2]))
        getattr(_library(), function)(ctypes.byref(arguments))


def _threads() -> int:
    """One in a forked process, such as a DataLoader's worker: torch's threads stayed in the parent."""
    return torch.get_num_threads() if os.getpid() == _LOADED_IN else 1


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, D, L) -> (B, L, D) with a contiguous last axis: no copy of what is (B, L, D) in memory already."""
    rows = x.detach().to(dtype).transpose(1, 2)
    return rows if rows.stride(2) == 1 or rows.shape[2] <= 1 else rows.contiguous()


def _inputs(scan: Scan, r: int) -> _Inputs:
    D, bias = (None if x is None else x[r] for x in (scan.D, scan.delta_bias))
    return _Inputs(
        scan.u[r].mT, scan.delta[r].mT, scan.A[r], scan.B[r].mT, scan.C[r].mT, D, bias, scan.delta_softplus,
        scan.is_reverse(r), scan.query_index,
    )  # fmt: skip


def saved_shape(scan: Scan) -> tuple[int, ...]:
    R, B, L, D, N, Q = scan.shape
    return (R, B, -(-L // _TILE), -(-D // _LANES), N, _LANES)


def forward(scan: Scan, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    R, B, L, D, N, Q = scan.shape
    y = torch.empty(R, B, Q, D)
    saved = torch.empty(saved_shape(scan) if save else (0,))
    for r in range(R):
        _inputs(scan, r).call("bimba_scan_forward", y=y[r], **({"starts": saved[r]} if save else {}))
    return y, torch.zeros(R, B, D, N), saved


def backward(scan: Scan, saved: Tensor, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
    per = []
    for r in range(scan.u.shape[0]):
        inputs = _inputs(scan, r)
        batch, length, channels, states = inputs.batch, inputs.length, inputs.channels, inputs.states
        grads = {
            "du": inputs.new(batch, length, channels),
            "ddelta": inputs.new(batch, length, channels),
            "dA": inputs.new(batch, states, channels),
            "dB": inputs.new(inputs.ranges, batch, length, states),  # summed below
            "dC": inputs.new(inputs.ranges, batch, inputs.outputs, states),
            "dD": inputs.new(batch, channels),
            "dbias": inputs.new(batch, channels),
        }
        if channels == 0:
            grads["dB"].zero_(), grads["dC"].zero_()
        inputs.call("bimba_scan_backward", starts=saved[r], dy=dy[r], **grads)
        du, ddelta, dA, dB, dC, dD, dbias = grads.values()
        per.append((du, ddelta, dA.sum(0).t(), dB.sum(0), dC.sum(0), dD.sum(0), dbias.sum(0)))
    stacked = [torch.stack(x) for x in zip(*per, strict=True)]
    return (*stacked, None if scan.initial_state is None else torch.zeros_like(scan.initial_state))


def _unavailable() -> str | None:
    library = _library()
    return library if isinstance(library, str) else None


def _refuses(scan: Scan) -> str | None:
    if scan.u.device.type != "cpu":
        return f"it runs on the CPU, the inputs are on {scan.u.device}"
    if scan.dtype == torch.float64:
        return "it computes in float32, an input is float64"
    return None


BACKEND = Backend(
    forward=forward, backward=backward, saved_shape=saved_shape, priority=20, unavailable=_unavailable, refuses=_refuses
)
