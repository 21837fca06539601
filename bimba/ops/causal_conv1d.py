"""Short depthwise convolution over the sequence (step [4]): each token sees itself and the W - 1 tokens before it.

Written as W multiply-adds on shifted views of (B, L, D), one sample at a time so that a sample stays in the
processor's cache: no padded, transposed or flipped copy, and only x is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bimba.types import BimbaError


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """y[t] = activation(bias + sum_w weight[w] x[t - (W - 1) + w]); with ``reverse`` the taps reach ahead instead.

    Args:
        x: (B, D, L), any strides; fastest when it is (B, L, D) in memory, and y is laid out that way.
        weight: (D, W); the last tap belongs to the token itself.
        bias: (D,).
        activation: "silu" or None.
        reverse: equals flipping x, convolving and flipping back, without the flips.

    Returns:
        (B, D, L) in x's dtype; half types are summed in float32.
    """
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[1]:
        raise BimbaError(
            f"causal_conv1d: expected x (B, D, L) and weight (D, W), "
            f"received {tuple(x.shape)} and {tuple(weight.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise BimbaError(f"causal_conv1d: expected bias ({weight.shape[0]},), received {tuple(bias.shape)}.")
    if activation not in (None, "silu"):
        raise BimbaError(f'causal_conv1d: activation must be "silu" or None, received {activation!r}.')
    y: Tensor = _CausalConv1d.apply(x.transpose(1, 2), weight, bias, activation == "silu", reverse)
    return y.transpose(1, 2)


class _CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        ctx.save_for_backward(x, weight, bias)
        ctx.options = (silu, reverse)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for x_b, y_b in zip(x, y, strict=True):
            pre = _sum_taps(x_b, weight, bias, reverse)
            y_b.copy_(F.silu(pre, inplace=True) if silu else pre)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        silu, reverse = ctx.options
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dweight = torch.zeros(weight.shape, dtype=_wide(weight), device=x.device)
        dbias = torch.zeros(weight.shape[0], dtype=_wide(weight), device=x.device)
        for x_b, dy_b, dx_b in zip(x, dy, dx, strict=True):
            dpre = dy_b.to(_wide(x))
            if silu:
                dpre = torch.ops.aten.silu_backward(dpre, _sum_taps(x_b, weight, bias, reverse))
            # The transposed convolution reaches the other way.
            dx_b.copy_(_sum_taps(dpre, weight, None, not reverse))
            dbias += dpre.sum(0)
            for tap, (to, source) in enumerate(_shifts(len(x_b), weight.shape[1], reverse)):
                dweight[:, tap] += (dpre[to] * x_b[source]).sum(0)
        dbias_or_none = None if bias is None else dbias.to(bias.dtype)
        return dx, dweight.to(weight.dtype), dbias_or_none, None, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _shifts(length: int, width: int, reverse: bool) -> list[tuple[slice, slice]]:
    """For each tap, the outputs it reaches and the inputs it reads."""
    shifts = []
    for tap in range(width):
        distance = min(width - 1 - tap, length)  # how far behind (ahead, if reverse) the tap reads
        later, earlier = slice(distance, length), slice(0, length - distance)
        shifts.append((earlier, later) if reverse else (later, earlier))
    return shifts


def _sum_taps(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """(L, D) -> (L, D): bias plus all taps, before the activation."""
    x, taps = x.to(_wide(x)), weight.to(_wide(x)).unbind(1)
    total = x * taps[-1]  # the last tap is the token itself
    if bias is not None:
        total += bias
    for tap, (to, source) in zip(taps[:-1], _shifts(len(x), len(taps), reverse), strict=False):
        total[to].addcmul_(x[source], tap)
    return total
