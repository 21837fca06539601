# Triton's compiler reads this file: it knows no starred tuples and no types.
# mypy: ignore-errors
# ruff: noqa: RUF005
"""The backward kernel: gradients of everything, the states recomputed from those that the forward pass saved.

A chunk is walked block by block (``BLOCK`` steps) from its end. Of each block the states are recomputed twice: first
from the saved one to the block's end, leaving the state before every tile of ``T`` steps in ``scratch``; then tile by
tile from the last one, the tile's T states and decays in registers. With g the gradient of the state after step s::

    g        += C dy                       only if step s is a query; there too dC = sum over channels of h dy
    d(gain)   = sum over states of g B     gain = step u
    dB        = sum over channels of g gain
    e         = decay g h[s - 1]           the gradient of step A, which is the exponent
    d(step)   = u d(gain) + sum over states of e A,      dA += e step
    g[s - 1]  = decay g
"""

from __future__ import annotations

import triton
import triton.language as tl

from bimba.ops.selective_scan.gpu.common import (
    INTEGERS,
    LN2,
    in_states,
    load_row,
    load_tokens,
    place,
    row_of_query,
    step_size,
    sum_over_channels,
    token_of_query,
)
from bimba.ops.selective_scan.gpu.forward import advance


@triton.jit
def add_to_row(base, x, N: tl.constexpr, BN: tl.constexpr):
    """Adds (BN,) to (N,) float32 at ``base``, to which other programs add too."""
    n = tl.arange(0, BN)
    if N == BN:
        tl.atomic_add(base + n, x, sem="relaxed")
    else:
        tl.atomic_add(base + n, x, mask=n < N, sem="relaxed")


@triton.jit
def load_query(q, C, dy, lane, inside, channels, outputs, N: tl.constexpr, BN: tl.constexpr):
    """Query q's rows of C (BN,) and dy (BD,); of dy zeros where there is no channel."""
    row = row_of_query(q, outputs)
    return load_row(C + row * N, N, BN), tl.load(dy + row * channels + lane, mask=inside, other=0.0)


@triton.jit
def unscan_tile(
    g, query, sums, token, forth, h, u, u_step, delta, delta_step, du, du_step, ddelta, A, bias, skip, B, dB, B_step, C,
    dC, dy, query_index, lane, inside, near, channels, outputs,
    SOFTPLUS: tl.constexpr, N: tl.constexpr, BN: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """T steps back, from token ``token + (T - 1) forth`` to ``token``, where all addresses are: g before them, the next
    query to be met, and the sums.

    ``h`` is the state before the tile, ``query`` is (q, its token, the token of the one to be met after it, its rows of
    C and dy), ``sums`` is (dA (BN, BD), dskip, dbias (BD,)).
    """
    u_rows, delta_rows = load_tokens(u, u_step, near, T), load_tokens(delta, delta_step, near, T)
    steps, slopes, decays, states = (), (), (), (h,)
    for t in tl.static_range(T):
        step, slope = step_size(delta_rows[t], bias, SOFTPLUS)
        steps, slopes = steps + (step,), slopes + (slope,)
        decays = decays + (tl.exp2(A * step[None, :]),)
    for t in tl.static_range(T):
        b = load_row(B + t * B_step, N, BN)
        states = states + (decays[t] * states[t] + (steps[t] * u_rows[t])[None, :] * b[:, None],)
    q, now, before, c, dy_row = query
    dA, dskip, dbias = sums
    for t in tl.static_range(T - 1, -1, -1):
        direct = tl.zeros_like(steps[t])
        if now == token + t * forth:
            g += c[:, None] * dy_row[None, :]
            dC_row = sum_over_channels(states[t + 1] * dy_row[None, :])
            add_to_row(dC + row_of_query(q, outputs) * N, dC_row, N, BN)
            if skip is not None:
                direct = skip * dy_row
                dskip += dy_row * u_rows[t]
            q -= forth
            now = before
            before = token_of_query(query_index, q - forth, outputs)
            c, dy_row = load_query(q, C, dy, lane, inside, channels, outputs, N, BN)
        b = load_row(B + t * B_step, N, BN)
        dgain = tl.sum(g * b[:, None], axis=0)
        add_to_row(dB + t * B_step, sum_over_channels(g * (steps[t] * u_rows[t])[None, :]), N, BN)
        g = decays[t] * g
        e = g * states[t]
        dA += e * steps[t][None, :]
        dstep = (tl.sum(e * A, axis=0) * LN2 + dgain * u_rows[t]) * slopes[t]
        dbias += dstep
        tl.store(du + t * du_step + lane, direct + dgain * steps[t], mask=inside)
        tl.store(ddelta + t * du_step + lane, dstep, mask=inside)
    return g, (q, now, before, c, dy_row), (dA, dskip, dbias)


@triton.jit(do_not_specialize=INTEGERS)
def backward_kernel(
    u, delta, A, B, C, skip, bias, saved, ends, query_index, next_query, dy, scratch,
    du, ddelta, dA, dB, dC, dskip, dbias, dstart,
    u_r, u_b, u_t, delta_r, delta_b, delta_t, batch, length, channels, outputs, chunk, chunks, blocks, reverse, unit,
    SOFTPLUS: tl.constexpr,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid and inputs as of the forward kernel's.

    saved: what that wrote; ends (R, B, chunks, C, BN, BD): the gradient of the state after each chunk; dy (R, B, Q, D);
    scratch: (BLOCK / T + T) states (BN, BD) a program. Written: du, ddelta (R, B, L, D) in u's and delta's dtypes;
    dA (R, B, chunks, C, BN, BD), dskip, dbias (R, B, chunks, D) in float32, to be summed; the initial state's dstart
    (R, B, C, BN, BD). Added to: dB (R, B, L, N), dC (R, B, Q, N), float32.
    """
    row, r, b, k, block, back = place(batch, channels, chunks, reverse, BD)
    width = tl.cdiv(channels, BD)  # in blocks
    first = block * BD
    lane = tl.arange(0, BD)
    inside = lane < channels - first
    near = tl.minimum(lane, channels - 1 - first)  # threads without a channel repeat the last one with g = 0
    begin = k * chunk
    end = tl.minimum(begin + chunk, length)
    origin = tl.where(back, length - 1, 0)
    forth = tl.where(back, -1, 1)
    far = forth.to(tl.int64)
    u_step, delta_step, du_step, B_step = far * u_t, far * delta_t, far * channels, far * N
    u += r * u_r + b * u_b + origin.to(tl.int64) * u_t + first
    delta += r * delta_r + b * delta_b + origin.to(tl.int64) * delta_t + first
    du += (row * length + origin) * channels + first
    ddelta += (row * length + origin) * channels + first
    B += (row * length + origin) * N
    dB += (row * length + origin) * N
    C += row * outputs * N
    dC += row * outputs * N
    dy += row * outputs * channels + first
    saved += (row * blocks * width + block) * BN * BD
    slot = scratch + tl.program_id(0).to(tl.int64) * (BLOCK // T + T) * BN * BD  # the next state's place

    A_bd = tl.load(in_states(A + (r * width + block) * BN * BD, unit, BN, BD))
    bias = tl.load(bias + r * channels + first + near)
    if skip is not None:
        skip = tl.load(skip + r * channels + first + near)
    g = tl.load(in_states(ends + ((row * chunks + k) * width + block) * BN * BD, unit, BN, BD))
    sums = (tl.zeros([BN, BD], tl.float32), tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32))
    q = origin + end * forth
    if query_index is not None:
        q = tl.load(next_query + back.to(tl.int32) * (blocks + 1) + tl.cdiv(end, BLOCK))
    q -= forth
    now = token_of_query(query_index, q, outputs)
    before = token_of_query(query_index, q - forth, outputs)
    c, dy_row = load_query(q, C, dy, lane, inside, channels, outputs, N, BN)
    query = (q, now, before, c, dy_row)

    last = begin + (end - begin - 1) // BLOCK * BLOCK  # the last block's first step; then what is read is at a block's
    saved += (last // BLOCK).to(tl.int64) * width * BN * BD  # first step, what is written behind the step done last
    u += last * u_step
    delta += last * delta_step
    B += last * B_step
    du += end * du_step
    ddelta += end * du_step
    dB += end * B_step
    for i in range(tl.cdiv(end - begin, BLOCK)):
        start = last - i * BLOCK
        stop = tl.minimum(start + BLOCK, end)
        whole = start + (stop - start) // T * T
        h = tl.load(in_states(saved, unit, BN, BD))
        saved -= width * BN * BD
        for _ in range(start, whole, T):
            tl.store(in_states(slot, unit, BN, BD), h)
            h, _ = advance(h, u, u_step, delta, delta_step, near, A_bd, bias, B, B_step, SOFTPLUS, N, BN, T)
            slot += BN * BD
            u += T * u_step
            delta += T * delta_step
            B += T * B_step
        for _ in range(whole, stop):
            tl.store(in_states(slot, unit, BN, BD), h)
            h, _ = advance(h, u, u_step, delta, delta_step, near, A_bd, bias, B, B_step, SOFTPLUS, N, BN, 1)
            slot += BN * BD
            u += u_step
            delta += delta_step
            B += B_step
        tl.debug_barrier()  # what was stored to scratch can be read
        for m in range(stop - whole):
            slot -= BN * BD
            u -= u_step
            delta -= delta_step
            B -= B_step
            du -= du_step
            ddelta -= du_step
            dB -= B_step
            g, query, sums = unscan_tile(
                g, query, sums, origin + (stop - 1 - m) * forth, forth, tl.load(in_states(slot, unit, BN, BD)), u, u_step,
                delta, delta_step, du, du_step, ddelta, A_bd, bias, skip, B, dB, B_step, C, dC, dy, query_index, lane,
                inside, near, channels, outputs, SOFTPLUS, N, BN, 1,
            )  # fmt: skip
        for m in range((whole - start) // T):
            slot -= BN * BD
            u -= T * u_step
            delta -= T * delta_step
            B -= T * B_step
            du -= T * du_step
            ddelta -= T * du_step
            dB -= T * B_step
            g, query, sums = unscan_tile(
                g, query, sums, origin + (whole - T - m * T) * forth, forth, tl.load(in_states(slot, unit, BN, BD)), u, u_step,
                delta, delta_step, du, du_step, ddelta, A_bd, bias, skip, B, dB, B_step, C, dC, dy, query_index, lane,
                inside, near, channels, outputs, SOFTPLUS, N, BN, T,
            )  # fmt: skip
        u -= BLOCK * u_step
        delta -= BLOCK * delta_step
        B -= BLOCK * B_step

    dA_sum, dskip_sum, dbias_sum = sums
    here = row * chunks + k
    tl.store(in_states(dA + (here * width + block) * BN * BD, unit, BN, BD), dA_sum)
    tl.store(dskip + here * channels + first + lane, dskip_sum, mask=inside)
    tl.store(dbias + here * channels + first + lane, dbias_sum, mask=inside)
    if k == 0:
        tl.store(in_states(dstart + (row * width + block) * BN * BD, unit, BN, BD), g)
