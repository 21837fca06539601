# Triton's compiler reads this file: it knows no starred tuples and no types.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM102
"""The forward kernel: y at the queries, the last state, and for the backward pass the state every ``BLOCK`` steps."""

from __future__ import annotations

import triton
import triton.language as tl

from bimba.ops.selective_scan.gpu.common import (
    INTEGERS,
    in_states,
    lanes,
    load_row,
    load_tokens,
    place,
    row_of_query,
    step_size,
    token_of_query,
)


@triton.jit
def decays_and_gains(u_rows, delta_rows, A, bias, SOFTPLUS: tl.constexpr, T: tl.constexpr):
    """Of T steps: exp(step A), each (BN, BD), step * u, each (BD,), and the sum of the steps."""
    decays, gains, total = (), (), tl.zeros_like(bias)
    for t in tl.static_range(T):
        step, _ = step_size(delta_rows[t], bias, SOFTPLUS)
        decays = decays + (tl.exp2(A * step[None, :]),)
        gains = gains + (step * u_rows[t],)
        total += step
    return decays, gains, total


@triton.jit
def advance(
    h, u, u_step, delta, delta_step, lane, A, bias, B, B_step,
    SOFTPLUS: tl.constexpr, N: tl.constexpr, BN: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The state after T steps, and the sum of the steps; the addresses are those of the first."""
    u_rows, delta_rows = load_tokens(u, u_step, lane, T), load_tokens(delta, delta_step, lane, T)
    decays, gains, total = decays_and_gains(u_rows, delta_rows, A, bias, SOFTPLUS, T)
    for t in tl.static_range(T):
        h = decays[t] * h + gains[t][None, :] * load_row(B + t * B_step, N, BN)[:, None]
    return h, total


@triton.jit
def scan_tile(
    h, query, token, forth, u_rows, delta_rows, A, bias, skip, B, B_step, C, y, query_index, lane, inside, channels,
    outputs,
    SOFTPLUS: tl.constexpr, N: tl.constexpr, BN: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """T steps, at tokens ``token``, ``token + forth``, ...: the state after them, and the next query.

    ``query`` is (q, the next query to be met; its token; the token of the one after it; row q of C). What is read of a
    query is read when the one before it is met, so that no step waits for memory.
    """
    decays, gains, _ = decays_and_gains(u_rows, delta_rows, A, bias, SOFTPLUS, T)
    q, now, after, c = query
    for t in tl.static_range(T):
        h = decays[t] * h + gains[t][None, :] * load_row(B, N, BN)[:, None]
        B += B_step
        if now == token + t * forth:
            out = tl.sum(h * c[:, None], axis=0)
            if skip is not None:
                out += skip * u_rows[t]
            tl.store(y + row_of_query(q, outputs) * channels + lane, out, mask=inside)
            q += forth
            now = after
            after = token_of_query(query_index, q + forth, outputs)
            c = load_row(C + row_of_query(q, outputs) * N, N, BN)
    return h, (q, now, after, c)


@triton.jit(do_not_specialize=INTEGERS)
def forward_kernel(
    u, delta, A, B, C, skip, bias, starts, query_index, next_query, y, last, saved,
    u_r, u_b, u_t, delta_r, delta_b, delta_t, batch, length, channels, outputs, chunk, chunks, blocks, reverse, unit,
    SOFTPLUS: tl.constexpr, SAVE: tl.constexpr,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: directions * samples * chunks * blocks of BD channels. ``chunk`` steps each, a multiple of BLOCK.

    u, delta (R, B, L, D) with strides u_r, u_b, u_t, 1; A (R, C, BN, BD), times log2(e); B (R, B, L, N),
    C (R, B, Q, N), skip, bias (R, D), all float32; starts (R, B, chunks, C, BN, BD) or None for zeros;
    query_index (Q,) and next_query (2, blocks + 1) int32 (see plan.py), or None where every token is a query;
    y (R, B, Q, D), last (R, B, C, BN, BD), saved (R, B, blocks, C, BN, BD), written if SAVE.
    """
    row, r, b, k, block, back = place(batch, channels, chunks, reverse, BD)
    width = tl.cdiv(channels, BD)  # in blocks
    first = block * BD
    lane, inside, near = lanes(channels, block, BD)
    begin = k * chunk
    end = tl.minimum(begin + chunk, length)
    token = tl.where(back, length - 1 - begin, begin)
    forth = tl.where(back, -1, 1)
    far = forth.to(tl.int64)
    u_step, delta_step, B_step = far * u_t, far * delta_t, far * N
    u += r * u_r + b * u_b + token.to(tl.int64) * u_t + first
    delta += r * delta_r + b * delta_b + token.to(tl.int64) * delta_t + first
    B += (row * length + token) * N
    C += row * outputs * N
    y += row * outputs * channels + first
    saved += ((row * blocks + begin // BLOCK) * width + block) * BN * BD

    A = tl.load(in_states(A + (r * width + block) * BN * BD, unit, BN, BD))
    bias = tl.load(bias + r * channels + first + near)
    if skip is not None:
        skip = tl.load(skip + r * channels + first + near)
    h = tl.zeros([BN, BD], tl.float32)
    if starts is not None:
        h = tl.load(in_states(starts + ((row * chunks + k) * width + block) * BN * BD, unit, BN, BD))
    q = token
    if query_index is not None:
        q = tl.load(next_query + back.to(tl.int32) * (blocks + 1) + begin // BLOCK)
    now = token_of_query(query_index, q, outputs)
    after = token_of_query(query_index, q + forth, outputs)
    query = (q, now, after, load_row(C + row_of_query(q, outputs) * N, N, BN))

    tiles = (end - begin) // T
    whole = begin + tiles * T
    if tiles > 0:
        u_rows, delta_rows = load_tokens(u, u_step, near, T), load_tokens(delta, delta_step, near, T)
        for s in range(begin, whole, T):
            ahead = tl.where(s + T < whole, T, 0)  # the last tile reads itself once more
            u += ahead * u_step
            delta += ahead * delta_step
            u_next, delta_next = load_tokens(u, u_step, near, T), load_tokens(delta, delta_step, near, T)
            if SAVE:
                if s % BLOCK == 0:
                    tl.store(in_states(saved, unit, BN, BD), h)
                    saved += width * BN * BD
            h, query = scan_tile(
                h, query, token, forth, u_rows, delta_rows, A, bias, skip, B, B_step, C, y, query_index, lane, inside,
                channels, outputs, SOFTPLUS, N, BN, T,
            )  # fmt: skip
            token += T * forth
            B += T * B_step
            u_rows, delta_rows = u_next, delta_next
        u += T * u_step
        delta += T * delta_step
    for s in range(whole, end):
        if SAVE:
            if s % BLOCK == 0:
                tl.store(in_states(saved, unit, BN, BD), h)
        u_rows, delta_rows = load_tokens(u, u_step, near, 1), load_tokens(delta, delta_step, near, 1)
        h, query = scan_tile(
            h, query, token, forth, u_rows, delta_rows, A, bias, skip, B, B_step, C, y, query_index, lane, inside,
            channels, outputs, SOFTPLUS, N, BN, 1,
        )  # fmt: skip
        token += forth
        u += u_step
        delta += delta_step
        B += B_step
    if k == chunks - 1:
        tl.store(in_states(last + (row * width + block) * BN * BD, unit, BN, BD), h)
