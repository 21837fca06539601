"""Short depthwise convolution over the sequence (step [4]): each token sees itself and the W - 1 tokens before it.

Written as W multiply-adds on shifted views of (L, D), in runs of positions that fit the processor's cache: no padded,
transposed or flipped copy of the sequence, and only x is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bimba.types import BimbaError

_RUN_ELEMENTS = 2**17


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
            for run in _runs(x_b):
                pre = _sum_taps(x_b, run, weight, bias, reverse)
                y_b[run] = F.silu(pre, inplace=True) if silu else pre
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        silu, reverse = ctx.options
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dpre = torch.empty(x.shape[1:], dtype=_wide(x), device=x.device)  # of one sample, before the activation
        dweight = torch.zeros(weight.shape[::-1], dtype=_wide(x), device=x.device)  # (W, D)
        dbias = torch.zeros(weight.shape[0], dtype=_wide(x), device=x.device)
        for x_b, dy_b, dx_b in zip(x, dy, dx, strict=True):
            for run in _runs(x_b):
                dy_run = dy_b[run].to(dpre.dtype)
                if silu:
                    dy_run = torch.ops.aten.silu_backward(dy_run, _sum_taps(x_b, run, weight, bias, reverse))
                dpre[run] = dy_run
                dbias += dy_run.sum(0)
                for tap, (to, source) in enumerate(_shifts(len(x_b), run, weight.shape[1], reverse)):
                    dweight[tap] += (dpre[to] * x_b[source]).sum(0)
            for run in _runs(x_b):  # the transposed convolution reaches the other way
                dx_b[run] = _sum_taps(dpre, run, weight, None, not reverse)
        return dx, dweight.t().to(weight.dtype), None if bias is None else dbias.to(bias.dtype), None, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _runs(x: Tensor) -> list[slice]:
    """Cut the positions of (L, D)."""
    size = max(1, _RUN_ELEMENTS // max(1, x.shape[1]))
    return [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]


def _shifts(length: int, run: slice, width: int, reverse: bool) -> list[tuple[slice, slice]]:
    """For each tap the outputs of the run that it reaches, and the inputs it reads for them (both may be empty)."""
    shifts = []
    for distance in range(width - 1, -1, -1):  # the last tap is the token itself
        if reverse:
            start, stop = run.start, max(run.start, min(run.stop, length - distance))
            shifts.append((slice(start, stop), slice(start + distance, stop + distance)))
        else:
            start, stop = min(run.stop, max(run.start, distance)), run.stop
            shifts.append((slice(start, stop), slice(max(0, start - distance), max(0, stop - distance))))
    return shifts


def _sum_taps(x: Tensor, run: slice, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """(L, D) -> the run's positions (n, D): bias plus all taps, before the activation."""
    dtype = _wide(x)
    taps = weight.to(dtype).t().contiguous().unbind(0)  # contiguous, else the multiply-adds are not vectorised
    own = x[run].to(dtype)
    total = own * taps[-1] if bias is None else torch.addcmul(bias.to(dtype), own, taps[-1])
    for tap, (to, source) in zip(taps[:-1], _shifts(len(x), run, len(taps), reverse), strict=False):
        total[to.start - run.start : to.stop - run.start].addcmul_(x[source].to(dtype), tap)
    return total
