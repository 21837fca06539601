# mypy: ignore-errors
# ruff: noqa: RUF005, SIM300
# Triton compiles a part of Python only: no unpacking in a tuple, and annotations that mean nothing to a type checker.
"""The convolution's two Triton kernels, for T tokens at a time and C channels (which lie side by side in memory).

A program takes C channels of a run of tokens of one sample, and all R directions of each. Sums are float32. Offsets are
64-bit: 256 frames of the 7B model are more than 2^31 elements. The taps are kept in the order of the tokens that they
meet, so that the anti-causal direction is the causal one on a window that lies W - 1 tokens ahead.
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
    """R W taps in the order of the tokens that they meet, then R biases, (C,) each; weight (R, W, D), bias (R, D)."""
    inside = channels < D
    parameters = ()
    for r in tl.static_range(R):
        for j in tl.static_range(W):
            row = r * W + (W - 1 - j if REVERSE != (r == 1) else j)
            parameters = parameters + (tl.load(weight + row * D + channels, mask=inside, other=0.0),)
    for r in tl.static_range(R):
        if BIAS:
            parameters = parameters + (tl.load(bias + r * D + channels, mask=inside, other=0.0),)
        else:
            parameters = parameters + (tl.zeros_like(channels).to(tl.float32),)
    return parameters


@triton.jit
def _sum_taps(parameters, window, r: tl.constexpr, first: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    """(T, C) or (C,): bias plus the taps of direction r on W tiles of the window, before the activation."""
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
    """x (B, L, D), weight (R, W, D), bias (R, D) -> y (R, B, L, D), a tile (T, C) after the other."""
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
def _read_row(rows, token, stride, channels, L, D):
    """(C,) float32 of (L, D), zeros outside."""
    inside = (token >= 0) & (token < L) & (channels < D)
    return tl.load(rows + token * stride + channels, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def backward_kernel(
    x, weight, bias, dy, dx, sums, stride_b, stride_l, B, L, D,
    R: tl.constexpr, W: tl.constexpr, REVERSE: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr,
    STEPS: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """dy (R, B, L, D) -> dx (B, L, D), sums (blocks, R, W + 1, D): this block's part of dweight and, last, of dbias.

    Walks from token to token, all in registers. At token t the window is the tokens t to t + W - 1: what the
    anti-causal output of t was computed from, and the causal one of t + W - 1. Both are recomputed there, and their
    gradients before the activation kept for W tokens, until dx of every token that they reach is complete.
    """
    block, sample, first, channels = _place(L, D, STEPS, T, C)
    inside = channels < D
    before: tl.constexpr = (W + T - 2) // T  # steps ahead of the block, for the gradients that reach into it
    parameters = _read_parameters(weight, bias, channels, D, R, W, REVERSE, BIAS)
    x += sample * stride_b
    window = ()
    for j in tl.static_range(W - 1):
        window = window + (_read_row(x, first - before * T + j, stride_l, channels, L, D),)
    kept = ()  # W gradients of each direction, in the order of their tokens
    for _ in tl.static_range(R * W):
        kept = kept + (tl.zeros([C], tl.float32),)
    totals = ()  # of W taps in the order of the tokens that they meet, then of the bias, for each direction
    for _ in tl.static_range(R * (W + 1)):
        totals = totals + (tl.zeros([C], tl.float32),)
    for step in range(_steps(L, first, STEPS, T) + before):
        start = first + (step - before) * T
        rows = ()  # all of a step are asked for before the first is needed
        for i in tl.static_range(T):
            rows = rows + (_read_row(x, start + i + W - 1, stride_l, channels, L, D),)
        for r in tl.static_range(R):
            dy_rows = dy + (r * B + sample) * L * D
            for i in tl.static_range(T):
                token = start + i + (0 if REVERSE != (r == 1) else W - 1)
                rows = rows + (_read_row(dy_rows, token, D, channels, L, D),)
        for i in tl.static_range(T):
            token = start + i
            window = window + (rows[i],)
            dx_row = tl.zeros([C], tl.float32)
            new_kept = ()
            new_totals = ()
            for r in tl.static_range(R):
                dpre = rows[(r + 1) * T + i]
                if SILU:
                    pre = _sum_taps(parameters, window, r, 0, R, W)
                    gate = _gate(pre)
                    output = token + (0 if REVERSE != (r == 1) else W - 1)
                    exists = (output >= 0) & (output < L)
                    dpre = tl.where(exists, dpre * gate * (1.0 + pre * (1.0 - gate)), 0.0)
                # Each output is counted in one block: the causal ones of the first W - 1 tokens in the first.
                counts = token >= first if REVERSE != (r == 1) else (token >= first) | (first == 0)
                counted = tl.where(counts, dpre, 0.0)
                for j in tl.static_range(W):
                    new_totals = new_totals + (totals[r * (W + 1) + j] + counted * window[j],)
                new_totals = new_totals + (totals[r * (W + 1) + W] + counted,)
                for j in tl.static_range(W - 1):
                    new_kept = new_kept + (kept[r * W + j + 1],)
                new_kept = new_kept + (dpre,)
                for j in tl.static_range(W):
                    dx_row += parameters[r * W + W - 1 - j] * new_kept[r * W + j]
            kept = new_kept
            totals = new_totals
            window = window[1:]
            out = dx + (sample * L + token) * D + channels
            tl.store(out, dx_row.to(dx.dtype.element_ty), mask=inside & (token >= first) & (token < L))
    for r in tl.static_range(R):
        for j in tl.static_range(W + 1):
            tap = W - 1 - j if (REVERSE != (r == 1)) and j < W else j
            row = (block * R + r) * (W + 1) + tap
            tl.store(sums + row * D + channels, totals[r * (W + 1) + j], mask=inside)
