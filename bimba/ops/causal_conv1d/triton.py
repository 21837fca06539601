"""The convolution as Triton kernels, both directions in one launch: x is read once, nothing else is kept.

With TRITON_INTERPRET=1 they run on the CPU, slowly, to be tested; then "auto" takes another backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bimba.ops.backend import Backend
from bimba.ops.causal_conv1d.inputs import Conv
from bimba.ops.triton_support import import_error, interpreted

# Tokens and channels at a time, and how many times: the backward kernel holds 32 numbers of every channel in registers.
_FORWARD = {"T": 8, "C": 128, "STEPS": 16, "num_warps": 4}
_BACKWARD = {"T": 4, "C": 256, "STEPS": 32, "num_warps": 4}


def forward(conv: Conv) -> tuple[Tensor]:
    """y (R, B, L, D)."""
    from bimba.ops.causal_conv1d.gpu.kernels import forward_kernel

    R, B, L, D, _ = conv.shape
    y = torch.empty(R, B, L, D, dtype=conv.x.dtype, device=conv.x.device)
    weight, bias = _parameters(conv)
    if y.numel() > 0:
        grid = (_blocks(conv, _FORWARD) * -(-D // _FORWARD["C"]),)
        with torch.cuda.device_of(conv.x):  # Triton launches on the current device
            forward_kernel[grid](conv.x, weight, bias, y, *conv.x.stride()[:2], B, L, D, **_constants(conv), **_FORWARD)
    return (y,)


def backward(conv: Conv, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x (B, L, D), weight (R, D, W) and bias (R, D)."""
    from bimba.ops.causal_conv1d.gpu.kernels import backward_kernel

    R, B, L, D, W = conv.shape
    dx = torch.empty(B, L, D, dtype=conv.x.dtype, device=conv.x.device)
    blocks = _blocks(conv, _BACKWARD)
    sums = torch.empty(blocks, R, W + 1, D, dtype=torch.float32, device=conv.x.device)
    weight, bias = _parameters(conv)
    if dx.numel() > 0:
        grid = (blocks * -(-D // _BACKWARD["C"]),)
        with torch.cuda.device_of(conv.x):
            backward_kernel[grid](
                conv.x, weight, bias, dy, dx, sums, *conv.x.stride()[:2], B, L, D, **_constants(conv), **_BACKWARD
            )
    dweight, dbias = sums[:, :, :W].sum(0), sums[:, :, W].sum(0)  # in one order, unlike atomic additions
    return dx, dweight.transpose(1, 2).contiguous(), dbias


def _parameters(conv: Conv) -> tuple[Tensor, Tensor]:
    """weight (R, W, D) and bias (R, D), or anything without a bias, in float32."""
    weight = conv.weight.float().transpose(1, 2).contiguous()
    return weight, weight if conv.bias is None else conv.bias.float().contiguous()


def _constants(conv: Conv) -> dict[str, int | bool]:
    R, *_, W = conv.shape
    return {"R": R, "W": W, "REVERSE": conv.reverse, "SILU": conv.silu, "BIAS": conv.bias is not None}


def _blocks(conv: Conv, tile: dict[str, int]) -> int:
    """How many runs of tokens, all samples together, are dealt to programs."""
    return conv.x.shape[0] * -(-conv.x.shape[1] // (tile["T"] * tile["STEPS"]))


def _unavailable() -> str | None:
    if import_error() is not None:
        return import_error()
    if not torch.cuda.is_available() and not interpreted():
        return "there is no GPU here (TRITON_INTERPRET=1 runs it on the CPU, slowly, to test it)"
    return None


def _refuses(conv: Conv) -> str | None:
    if conv.x.device.type != "cuda" and not (interpreted() and conv.x.device.type == "cpu"):
        return f"it runs on a GPU, the inputs are on {conv.x.device}"
    if conv.dtype == torch.float64:
        return "it computes in float32, an input is float64"
    return None


BACKEND = Backend(
    forward=forward,
    backward=backward,
    priority=-1 if interpreted() else 30,  # the interpreter is for tests: "auto" never comes to it
    unavailable=_unavailable,
    refuses=_refuses,
)
