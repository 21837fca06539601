"""The scan as one compiled loop (``csrc/scan.cpp``): sixteen channels a vector, states in registers, float32 inside.

Compiled on first use. Nothing of size (B, D, L, N) exists: the forward pass keeps the state every 64 positions, if
gradients are wanted, and the backward pass recomputes the rest.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bimba.ops.backend import Backend
from bimba.ops.extension import build
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


class _CompiledScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
                delta_bias: Tensor | None, *options: Any) -> Tensor:  # fmt: skip
        inputs = _Inputs(u, delta, A, B, C, D, delta_bias, *options)
        y, starts = inputs.new(inputs.batch, inputs.outputs, inputs.channels), inputs.new_starts()
        inputs.call("bimba_scan_forward", y=y, starts=starts)
        softplus, reverse, query_index = options
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, query_index, starts)
        ctx.options = (softplus, reverse)
        return y.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, query_index, starts = ctx.saved_tensors
        u, delta, A, B, C, D, delta_bias = tensors
        softplus, reverse = ctx.options
        inputs = _Inputs(u, delta, A, B, C, D, delta_bias, softplus, reverse, query_index)
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
        inputs.call("bimba_scan_backward", starts=starts, dy=dy.float().transpose(1, 2).contiguous(), **grads)
        du, ddelta, dA, dB, dC, dD, dbias = grads.values()
        summed = (
            du.transpose(1, 2), ddelta.transpose(1, 2), dA.sum(0).t(), dB.sum(0).transpose(1, 2),
            dC.sum(0).transpose(1, 2), dD.sum(0), dbias.sum(0),
        )  # fmt: skip
        return *(None if x is None else g.to(x.dtype) for g, x in zip(summed, tensors, strict=True)), None, None, None


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
    """(B, D, L) -> (B, D, L) or (B, D, Q) float32: everything but the gate."""
    tensors = (u, delta, A, B, C, D, delta_bias)
    options = (delta_softplus, reverse, query_index)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        y: Tensor = _CompiledScan.apply(*tensors, *options)
        return y
    inputs = _Inputs(*tensors, *options)
    y = inputs.new(inputs.batch, inputs.outputs, inputs.channels)
    inputs.call("bimba_scan_forward", y=y)
    return y.transpose(1, 2)


def _unavailable() -> str | None:
    library = _library()
    return library if isinstance(library, str) else None


def _refuses(u: Tensor, *others: Tensor | None, **_: Any) -> str | None:
    if u.device.type != "cpu":
        return f"it runs on the CPU, the inputs are on {u.device}"
    if any(x is not None and x.dtype == torch.float64 for x in (u, *others)):
        return "it computes in float32, an input is float64"
    return None


BACKEND = Backend(run=scan, priority=20, unavailable=_unavailable, refuses=_refuses)
