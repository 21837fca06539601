"""The convolution in plain PyTorch, on any device: W multiply-adds on shifted views of (L, D).

On a CPU in runs of positions that fit its cache, elsewhere in runs as long as memory allows: each is a handful of
kernel launches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bimba.ops.backend import Backend
from bimba.ops.causal_conv1d.inputs import Conv

_RUN_ELEMENTS = {"cpu": 2**17}
_RUN_ELEMENTS_ELSEWHERE = 2**27  # half a gigabyte of float32


def forward(conv: Conv) -> tuple[Tensor]:
    """y (R, B, L, D)."""
    directions, batch, length, channels, _ = conv.shape
    y = torch.empty(directions, batch, length, channels, dtype=conv.x.dtype, device=conv.x.device)
    taps = _taps(conv)
    for sample, x in enumerate(conv.x):
        for run in _runs(x):
            for r in range(directions):
                pre = _sum_taps(x, run, taps[r], _bias(conv, r), conv.is_reverse(r))
                y[r, sample, run] = F.silu(pre, inplace=True) if conv.silu else pre
    return (y,)


def backward(conv: Conv, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x (B, L, D), weight (R, D, W) and bias (R, D)."""
    directions, _, length, channels, width = conv.shape
    taps = _taps(conv)
    dx = torch.empty(conv.x.shape, dtype=conv.x.dtype, device=conv.x.device)
    dpre = dx.new_empty(directions, length, channels, dtype=conv.dtype)  # of one sample, before the activation
    dweight = dx.new_zeros(directions, width, channels, dtype=conv.dtype)
    dbias = dx.new_zeros(directions, channels, dtype=conv.dtype)
    for sample, x in enumerate(conv.x):
        for run in _runs(x):
            for r in range(directions):
                reverse = conv.is_reverse(r)
                dy_run = dy[r, sample, run].to(conv.dtype)
                if conv.silu:
                    pre = _sum_taps(x, run, taps[r], _bias(conv, r), reverse)
                    dy_run = torch.ops.aten.silu_backward(dy_run, pre)
                dpre[r, run] = dy_run
                dbias[r] += dy_run.sum(0)
                for tap, (to, source) in enumerate(_shifts(length, run, width, reverse)):
                    dweight[r, tap] += (dpre[r, to] * x[source]).sum(0)
        for run in _runs(x):  # the transposed convolution reaches the other way
            parts = [_sum_taps(dpre[r], run, taps[r], None, not conv.is_reverse(r)) for r in range(directions)]
            dx[sample, run] = parts[0] if len(parts) == 1 else parts[0].add_(parts[1])
    return dx, dweight.transpose(1, 2).contiguous(), dbias


def _taps(conv: Conv) -> Tensor:
    """(R, W, D), contiguous, else the multiply-adds are not vectorised."""
    return conv.weight.to(conv.dtype).transpose(1, 2).contiguous()


def _bias(conv: Conv, direction: int) -> Tensor | None:
    return None if conv.bias is None else conv.bias[direction].to(conv.dtype)


def _runs(x: Tensor) -> list[slice]:
    """Cut the positions of (L, D)."""
    elements = _RUN_ELEMENTS.get(x.device.type, _RUN_ELEMENTS_ELSEWHERE)
    size = max(1, elements // max(1, x.shape[1]))
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


def _sum_taps(x: Tensor, run: slice, taps: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """(L, D), taps (W, D) -> the run's positions (n, D): bias plus all taps, before the activation."""
    own = x[run].to(taps.dtype)
    total = own * taps[-1] if bias is None else torch.addcmul(bias, own, taps[-1])
    for tap, (to, source) in zip(taps[:-1], _shifts(len(x), run, len(taps), reverse), strict=False):
        total[to.start - run.start : to.stop - run.start].addcmul_(x[source].to(taps.dtype), tap)
    return total


BACKEND = Backend(forward=forward, backward=backward, priority=10)
