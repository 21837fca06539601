"""The scan as one compiled loop (``csrc/scan.cpp``): channels in vectors, states in registers, float32 inside.

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
from bimba.ops.memory import new
from bimba.ops.selective_scan.inputs import Scan, rows
from bimba.types import BimbaError

_TILE = 64  # as in tile.h
_LANES = 16  # the most that vec.h has
_SOURCES = Path(__file__).parent / "csrc"
_HEADERS = [_SOURCES / name for name in ("parallel.h", "tile.h", "vec.h")]
_Strides = ctypes.c_int64 * 3
_LOADED_IN = os.getpid()
_SIZES = ("directions", "batch", "length", "channels", "states", "outputs", "threads", "ranges")
_SEQUENCES = ("u", "delta", "B", "C")
_POINTERS = (
    *("A", "D", "bias", "initial_state", "query_index", "y", "last_state", "starts", "dy", "dlast"),
    *("du", "ddelta", "dA", "dD", "dbias", "dB", "dC", "dinitial"),
)


class _Arguments(ctypes.Structure):
    """``Arguments`` of tile.h, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (*_SIZES, "softplus", "reverse", "bfloat16")),
        *((name, ctypes.c_void_p) for name in _SEQUENCES),
        *((f"{name}_strides", _Strides) for name in _SEQUENCES),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    ]


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled functions, or why there are none."""
    try:
        return build("bimba_scan", [_SOURCES / "scan.cpp"], _HEADERS)
    except BimbaError as error:
        return str(error)


def forward(scan: Scan, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (R, B, Q, D), the last state (R, B, D, N), and with ``save`` the states before each tile; all float32."""
    directions, batch, _, channels, states, outputs = scan.shape
    y, last_state = (new(directions, batch, *shape, keep=save) for shape in ((outputs, channels), (channels, states)))
    starts = new(*saved_shape(scan), keep=True) if save else new(0)
    _call("bimba_scan_forward", scan, _ranges(scan), y=y, last_state=last_state, starts=starts)
    return y, last_state, starts


def backward(scan: Scan, saved: Tensor, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, delta_bias and initial_state in float32; None where there is no such input."""
    directions, batch, length, channels, states, outputs = scan.shape
    ranges = _ranges(scan)
    made = functools.partial(new, keep=True)  # a step of training asks for the same as the one before
    grads = {
        "du": made(directions, batch, length, channels),
        "ddelta": made(directions, batch, length, channels),
        "dA": made(directions, batch, channels, states),
        "dB": made(ranges, directions, batch, length, states),
        "dC": made(ranges, directions, batch, outputs, states),
        "dD": made(directions, batch, channels),
        "dbias": made(directions, batch, channels),
        "dinitial": made(directions, batch, channels, states),
    }
    _call("bimba_scan_backward", scan, ranges, starts=saved, dy=dy, dlast=dlast, **grads)
    du, ddelta, dA, dB, dC, dD, dbias, dinitial = grads.values()
    return (
        du, ddelta, _added(dA, 1), _added(dB, 0), _added(dC, 0), None if scan.D is None else _added(dD, 1),
        None if scan.delta_bias is None else _added(dbias, 1), None if scan.initial_state is None else dinitial,
    )  # fmt: skip


def _added(x: Tensor, axis: int) -> Tensor:
    return x.squeeze(axis) if x.shape[axis] == 1 else x.sum(axis)


def saved_shape(scan: Scan) -> tuple[int, ...]:
    """The states before each tile."""
    directions, batch, length, channels, states, _ = scan.shape
    return directions, batch, -(-length // _TILE), states, channels


def _call(function: str, scan: Scan, ranges: int, **memory: Tensor) -> None:
    """Runs a function of scan.cpp; ``memory``: what it reads and writes beside the scan's inputs."""
    half = all(x.dtype == torch.bfloat16 for x in (scan.u, scan.delta, scan.B, scan.C))
    dtype = torch.bfloat16 if half else torch.float32
    sequences = {name: rows(getattr(scan, name).to(dtype)) for name in _SEQUENCES}  # a cast may choose other strides
    others = {"A": scan.A, "D": scan.D, "bias": scan.delta_bias, "initial_state": scan.initial_state}
    plain = {name: x.float().contiguous() for name, x in others.items() if x is not None}
    if scan.query_index is not None:
        plain["query_index"] = scan.query_index.contiguous()
    arguments = _Arguments(
        *scan.shape[:2], *scan.shape[2:], threads=_threads(), ranges=ranges, softplus=scan.delta_softplus,
        reverse=scan.reverse, bfloat16=half, **{name: x.data_ptr() for name, x in (sequences | plain | memory).items()},
        **{f"{name}_strides": _Strides(*x.stride()[:3]) for name, x in sequences.items()},
    )  # fmt: skip
    if scan.query_index is not None and not scan.query_index.numel():
        arguments.query_index = ctypes.addressof(arguments)  # of no element: not null, which means every position
    getattr(_library(), function)(ctypes.byref(arguments))


def _ranges(scan: Scan) -> int:
    """Into how many ranges channels are split: rows are dealt to threads first, these only if they are few."""
    directions, batch, _, channels, *_ = scan.shape
    return max(1, min(-(-channels // _LANES), -(-_threads() // max(1, directions * batch))))


def _threads() -> int:
    """One in a forked process, such as a DataLoader's worker: torch's threads stayed in the parent."""
    return torch.get_num_threads() if os.getpid() == _LOADED_IN else 1


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
    forward=forward,
    backward=backward,
    priority=20,
    saved_shape=saved_shape,
    unavailable=_unavailable,
    refuses=_refuses,
    expected=True,
)
