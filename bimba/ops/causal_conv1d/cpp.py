"""The convolution as one compiled loop (``csrc/conv.cpp``): both directions and all taps in one pass over x.

Compiled on first use. Sums are float32; x, y and their gradients are float32 or bfloat16.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch
from torch import Tensor

from bimba.ops.backend import Backend
from bimba.ops.causal_conv1d.inputs import Conv
from bimba.ops.extension import build
from bimba.ops.memory import new
from bimba.types import BimbaError

_TILE = 64  # as in conv.cpp
_SOURCES = Path(__file__).parent / "csrc"
_HEADERS = Path(__file__).parents[1] / "selective_scan" / "csrc"
_LOADED_IN = os.getpid()


class _Arguments(ctypes.Structure):
    """``Arguments`` of conv.cpp, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("directions", "batch", "length", "channels", "width")),
        *((name, ctypes.c_int64) for name in ("threads", "parts", "silu", "reverse", "bfloat16")),
        ("x_strides", ctypes.c_int64 * 2),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "y", "dy", "dx", "sums")),
    ]


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled functions, or why there are none."""
    try:
        return _build("bimba_conv")
    except BimbaError as error:
        return str(error)


def _build(name: str) -> ctypes.CDLL:
    return build(name, [_SOURCES / "conv.cpp"], [_HEADERS / "vec.h", _HEADERS / "parallel.h"])


def forward(conv: Conv) -> tuple[Tensor]:
    """y (R, B, L, D)."""
    y = new(*conv.weight.shape[:1], *conv.x.shape, dtype=conv.x.dtype)
    _call("bimba_conv_forward", conv, y=y)
    return (y,)


def backward(conv: Conv, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x (B, L, D), weight (R, D, W) and bias (R, D)."""
    directions, _, _, channels, width = conv.shape
    dx = new(*conv.x.shape, dtype=conv.x.dtype, keep=True)
    sums = torch.zeros(_parts(conv), directions, width + 1, channels, dtype=torch.float32, device="cpu")
    _call("bimba_conv_backward", conv, dy=dy, dx=dx, sums=sums)
    return dx, sums[:, :, :width].sum(0).transpose(1, 2).contiguous(), sums[:, :, width].sum(0)


def _call(function: str, conv: Conv, **tensors: Tensor) -> None:
    """Runs a function of conv.cpp on ``tensors`` and the inputs."""
    directions, batch, length, channels, width = conv.shape
    arguments = _Arguments(
        directions=directions, batch=batch, length=length, channels=channels, width=width, threads=_threads(),
        parts=_parts(conv), silu=int(conv.silu), reverse=int(conv.reverse),
        bfloat16=int(conv.x.dtype == torch.bfloat16), x_strides=(ctypes.c_int64 * 2)(*conv.x.stride()[:2]),
    )  # fmt: skip
    tensors |= {"x": conv.x, "weight": conv.weight.float().transpose(1, 2).contiguous()}
    if conv.bias is not None:
        tensors["bias"] = conv.bias.float().contiguous()
    for name, tensor in tensors.items():
        setattr(arguments, name, tensor.data_ptr())
    getattr(_library(), function)(ctypes.byref(arguments))


def _parts(conv: Conv) -> int:
    """Into how many shares the tiles are split, one for each thread."""
    _, batch, length, _, _ = conv.shape
    return max(1, min(_threads(), batch * -(-length // _TILE)))


def _threads() -> int:
    """One in a forked process, such as a DataLoader's worker: torch's threads stayed in the parent."""
    return torch.get_num_threads() if os.getpid() == _LOADED_IN else 1


def _unavailable() -> str | None:
    library = _library()
    return library if isinstance(library, str) else None


def _refuses(conv: Conv) -> str | None:
    if conv.x.device.type != "cpu":
        return f"it runs on the CPU, the inputs are on {conv.x.device}"
    if conv.x.dtype not in (torch.float32, torch.bfloat16):
        return f"it takes x in float32 or bfloat16, x is in {conv.x.dtype}"
    if conv.dtype == torch.float64:
        return "it computes in float32, an input is float64"
    return None


BACKEND = Backend(
    forward=forward, backward=backward, priority=20, unavailable=_unavailable, refuses=_refuses, expected=True
)
