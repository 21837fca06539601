"""The convolution's two Triton kernels, for tiles of T tokens and C channels (channels lie side by side in memory).

A program takes STEPS tiles of one sample, one after another, and all R directions of each. The tile's own tokens and
those up to W - 1 away on either side are read as 2 W - 1 shifted tiles, the *window*; the causal direction's taps meet
the first W of them, the anti-causal one's, in the opposite order, the last W. Sums are float32. Offsets are 64-bit:
256 frames of the 7B model are more than 2^31 elements.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _place(L, D, STEPS: tl.constexpr, T: tl.constexpr, C: tl.constexpr):
    """This program's block of tokens among those of all samples, its sample, its first token, and its channels (C,)."""
    channel_blocks = tl.cdiv(D, C)
    token_blocks = tl.cdiv(L, T * STEPS)
    block = (tl.program_id(0) // channel_blocks).to(tl.int64)
    channels = tl.program_id(0) % channel_blocks * C + tl.arange(0, C)
    return block, block // token_blocks, block % token_blocks * (T * STEPS), channels


@triton.jit
def _steps(L, first, STEPS: tl.constexpr, T: tl.constexpr):
    """The tiles of a program that starts at token ``first``: fewer at the end of the sequence."""
    return tl.minimum(tl.cdiv(L - first, T), STEPS).to(tl.int32)


@triton.jit
def _read(rows, tokens, stride, channels, L, D):
    """(T, C) float32 of (L, D), zeros outside."""
    inside = ((tokens >= 0) & (tokens < L))[:, None] & (channels < D)[None, :]
    return tl.load(rows + tokens[:, None] * stride + channels[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _read_window(rows, tokens, stride, channels, L, D, W: tl.constexpr):
    """2 W - 1 tiles; tile W - 1 is the tokens' own."""
    window = ()
    for shift in tl.static_range(2 * W - 1):
        window = window + (_read(rows, tokens + (shift - (W - 1)), stride, channels, L, D),)
    return window


@triton.jit
def _read_parameters(
    weight, bias, channels, D, R: tl.constexpr, W: tl.constexpr, REVERSE: tl.constexpr, BIAS: tl.constexpr
):
    """R W taps in the order of the tokens that they meet, then R biases, (1, C) each; weight (R, W, D), bias (R, D)."""
    inside = channels < D
    parameters = ()
    for r in tl.static_range(R):
        for j in tl.static_range(W):
            row = r * W + (W - 1 - j if REVERSE != (r == 1) else j)
            parameters = parameters + (tl.load(weight + row * D + channels, mask=inside, other=0.0)[None, :],)
    for r in tl.static_range(R):
        if BIAS:
            parameters = parameters + (tl.load(bias + r * D + channels, mask=inside, other=0.0)[None, :],)
        else:
            parameters = parameters + (tl.zeros_like(channels).to(tl.float32)[None, :],)
    return parameters


@triton.jit
def _sum_taps(parameters, window, r: tl.constexpr, first: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    """(T, C): bias plus the taps of direction r on W tiles of the window, before the activation."""
    total = parameters[R * W + r] + parameters[r * W] * window[first]
    for j in tl.static_range(1, W):
        total += parameters[r * W + j] * window[first + j]
    return total


@triton.jit
def _gate(pre):
    """The logistic function, by the exponential that the hardware has."""
    return 1.0 / (1.0 + tl.exp2(pre * -1.4426950408889634))


@triton.jit
def forward_kernel(
    x, weight, bias, y, stride_b, stride_l, B, L, D,
    R: tl.constexpr, W: tl.constexpr, REVERSE: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr,
    STEPS: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """x (B, L, D), weight (R, W, D), bias (R, D) -> y (R, B, L, D)."""
    _, sample, first, channels = _place(L, D, STEPS, T, C)
    parameters = _read_parameters(weight, bias, channels, D, R, W, REVERSE, BIAS)
    for step in range(_steps(L, first, STEPS, T)):
        tokens = first + step * T + tl.arange(0, T)
        inside = (tokens < L)[:, None] & (channels < D)[None, :]
        window = _read_window(x + sample * stride_b, tokens, stride_l, channels, L, D, W)
        for r in tl.static_range(R):
            pre = _sum_taps(parameters, window, r, W - 1 if REVERSE != (r == 1) else 0, R, W)
            if SILU:
                pre *= _gate(pre)
            rows = (r * B + sample) * L + tokens
            tl.store(y + rows[:, None] * D + channels[None, :], pre.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _differentiate(
    dy, parameters, window, tokens, channels, L, D,
    r: tl.constexpr, ANTI: tl.constexpr, SILU: tl.constexpr, R: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """One direction's part of dx (T, C), and the W + 1 products (T, C) whose sums over T are those of its parameters.

    A token's output is recomputed by every token that its gradient reaches: nothing of dy's size is written.
    """
    products = ()
    dx = tl.zeros_like(window[0])
    for e in tl.static_range(W):  # the outputs `e` tokens on, which read this token too
        reached = tokens - e if ANTI else tokens + e
        dpre = _read(dy, reached, D, channels, L, D)
        if SILU:
            pre = _sum_taps(parameters, window, r, W - 1 - e if ANTI else e, R, W)
            gate = _gate(pre)
            slope = gate * (1.0 + pre * (1.0 - gate))
            dpre = tl.where(((reached >= 0) & (reached < L))[:, None], dpre * slope, 0.0)
        dx += dpre * parameters[r * W + (e if ANTI else W - 1 - e)]
        if e == 0:
            for j in tl.static_range(W):
                products = products + (dpre * window[(W - 1 if ANTI else 0) + j],)
            products = products + (dpre,)
    return dx, products


@triton.jit
def backward_kernel(
    x, weight, bias, dy, dx, sums, stride_b, stride_l, B, L, D,
    R: tl.constexpr, W: tl.constexpr, REVERSE: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr,
    STEPS: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """dy (R, B, L, D) -> dx (B, L, D), sums (blocks, R, W + 1, D): this block's part of dweight and, last, of dbias."""
    block, sample, first, channels = _place(L, D, STEPS, T, C)
    parameters = _read_parameters(weight, bias, channels, D, R, W, REVERSE, BIAS)
    totals = ()  # (T, C) each: of the taps in the order of the tokens that they meet, then of the bias, by direction
    for _ in tl.static_range(R * (W + 1)):
        totals = totals + (tl.zeros([T, C], tl.float32),)
    for step in range(_steps(L, first, STEPS, T)):
        tokens = first + step * T + tl.arange(0, T)
        inside = (tokens < L)[:, None] & (channels < D)[None, :]
        window = _read_window(x + sample * stride_b, tokens, stride_l, channels, L, D, W)
        dx_tile = tl.zeros([T, C], tl.float32)
        added = ()
        for r in tl.static_range(R):
            rows = dy + (r * B + sample) * L * D
            dx_part, parts = _differentiate(
                rows, parameters, window, tokens, channels, L, D, r, REVERSE != (r == 1), SILU, R, W
            )
            dx_tile += dx_part
            added = added + parts
        out = dx + (sample * L + tokens)[:, None] * D + channels[None, :]
        tl.store(out, dx_tile.to(dx.dtype.element_ty), mask=inside)
        summed = ()
        for i in tl.static_range(R * (W + 1)):
            summed = summed + (totals[i] + added[i],)
        totals = summed
    for r in tl.static_range(R):
        for j in tl.static_range(W + 1):
            tap = W - 1 - j if (REVERSE != (r == 1)) and j < W else j
            row = (block * R + r) * (W + 1) + tap
            tl.store(sums + row * D + channels, tl.sum(totals[r * (W + 1) + j], axis=0), mask=channels < D)
