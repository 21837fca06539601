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
    advance,
    in_states,
    lanes,
    load_row,
    load_tokens,
    place,
    row_of_query,
    step_size,
    sum_over_channels,
    token_of_query,
)


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
    g, query, sums, token, forth, full, h, u, delta, du, ddelta, row_step, A, bias, skip, B, dB, B_step, C, dC, dy,
    query_index, lane, inside, near, channels, outputs,
    SOFTPLUS: tl.constexpr, N: tl.constexpr, BN: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Two steps back, from token ``token + forth`` to ``token``, where all addresses are: g before them, the next query
    to be met, and the sums. If not ``full``, the step at ``token`` only.

    ``h`` is the state before the tile, ``query`` is (q, its token, the token of the one to be met after it, its rows of
    C and dy), ``sums`` is (dA (BN, BD), dskip, dbias (BD,)).
    """
    tl.static_assert(T == 2)
    # Without a second step one of no size is done, at the addresses of the first, which then stores over it.
    row_step, B_step = tl.where(full, row_step, 0), tl.where(full, B_step, 0)
    u_rows, delta_rows = load_tokens(u, row_step, near, T), load_tokens(delta, row_step, near, T)
    steps, slopes, decays, states = (), (), (), (h,)
    for t in tl.static_range(T):
        step, slope = step_size(delta_rows[t], bias, SOFTPLUS)
        if t == 1:
            step, slope = tl.where(full, step, 0.0), tl.where(full, slope, 0.0)
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
        tl.store(du + t * row_step + lane, direct + dgain * steps[t], mask=inside)
        tl.store(ddelta + t * row_step + lane, dstep, mask=inside)
    return g, (q, now, before, c, dy_row), (dA, dskip, dbias)


@triton.jit(do_not_specialize=INTEGERS)
def backward_kernel(
    u, delta, A, B, C, skip, bias, saved, ends, query_index, next_query, dy, scratch,
    du, ddelta, dA, dB, dC, dskip, dbias, dstart,
    u_r, u_b, delta_r, delta_b, batch, length, channels, outputs, chunk, chunks, blocks, reverse, unit,
    SOFTPLUS: tl.constexpr,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid and inputs as of the forward kernel's, but u and delta with one token behind the other, D numbers apart.

    saved: what that wrote; ends (R, B, chunks, C, BN, BD): the gradient of the state after each chunk; dy (R, B, Q, D);
    scratch: BLOCK / T states (BN, BD) a program. Written: du, ddelta (R, B, L, D) in u's and delta's dtypes; in float32
    dA and dstart, the gradient of the state before each chunk, (R, B, chunks, C, BN, BD), dskip and dbias
    (R, B, chunks, C, BD), all where programs lie: what is stored last needs no address but the program's number. Added
    to: dB (R, B, L, N), dC (R, B, Q, N), float32.
    """
    row, r, b, k, block, back = place(tl.program_id(0), batch, channels, chunks, reverse, BD)
    width = tl.cdiv(channels, BD)  # in blocks
    first = block * BD
    lane, inside, near = lanes(channels, block, BD)
    begin = k * chunk
    end = tl.minimum(begin + chunk, length)
    origin = tl.where(back, length - 1, 0)
    forth = tl.where(back, -1, 1)
    far = forth.to(tl.int64)
    row_step, B_step = far * channels, far * N
    u += r * u_r + b * u_b + origin.to(tl.int64) * channels + first
    delta += r * delta_r + b * delta_b + origin.to(tl.int64) * channels + first
    du += (row * length + origin) * channels + first
    ddelta += (row * length + origin) * channels + first
    B += (row * length + origin) * N
    dB += (row * length + origin) * N
    C += row * outputs * N
    dC += row * outputs * N
    dy += row * outputs * channels + first
    saved += (row * blocks * width + block) * BN * BD
    slot = scratch + tl.program_id(0).to(tl.int64) * (BLOCK // T) * BN * BD  # the next state's place

    A_bd = tl.load(in_states(A + (r * width + block) * BN * BD, unit, BN, BD))
    bias = tl.load(bias + r * channels + first + near)
    if skip is not None:
        skip = tl.load(skip + r * channels + first + near)
    g = tl.load(in_states(ends + tl.program_id(0).to(tl.int64) * BN * BD, unit, BN, BD))
    sums = (tl.zeros([BN, BD], tl.float32), tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32))
    q = origin + end * forth
    if query_index is not None:
        q = tl.load(next_query + back.to(tl.int32) * (blocks + 1) + tl.cdiv(end, BLOCK))
    q -= forth
    now = token_of_query(query_index, q, outputs)
    before = token_of_query(query_index, q - forth, outputs)
    c, dy_row = load_query(q, C, dy, lane, inside, channels, outputs, N, BN)
    query = (q, now, before, c, dy_row)

    start = begin + (end - begin - 1) // BLOCK * BLOCK  # the last block's first step, where all addresses go
    saved += (start // BLOCK).to(tl.int64) * width * BN * BD
    u += start * row_step
    delta += start * row_step
    du += start * row_step
    ddelta += start * row_step
    B += start * B_step
    dB += start * B_step
    token = origin + start * forth
    steps = end - start  # of the block; only the last block may be short
    for _ in range(tl.cdiv(end - begin, BLOCK)):
        tiles = tl.cdiv(steps, T)
        h = tl.load(in_states(saved, unit, BN, BD))
        tl.store(in_states(slot, unit, BN, BD), h)
        for _ in range(tiles - 1):
            h, _ = advance(h, u, row_step, delta, row_step, near, A_bd, bias, B, B_step, SOFTPLUS, N, BN, T)
            slot += BN * BD
            tl.store(in_states(slot, unit, BN, BD), h)
            u += T * row_step
            delta += T * row_step
            B += T * B_step
        tl.debug_barrier()  # what was stored to scratch can be read
        steps_before = (tiles - 1) * T
        token += steps_before * forth
        du += steps_before * row_step
        ddelta += steps_before * row_step
        dB += steps_before * B_step
        full = steps - steps_before == T
        for _ in range(tiles):
            h = tl.load(in_states(slot, unit, BN, BD))
            g, query, sums = unscan_tile(
                g, query, sums, token, forth, full, h, u, delta, du, ddelta, row_step, A_bd, bias, skip, B, dB, B_step,
                C, dC, dy, query_index, lane, inside, near, channels, outputs, SOFTPLUS, N, BN, T,
            )  # fmt: skip
            full = True  # all but the last tile of the last block
            slot -= BN * BD
            token -= T * forth
            u -= T * row_step
            delta -= T * row_step
            du -= T * row_step
            ddelta -= T * row_step
            B -= T * B_step
            dB -= T * B_step
        steps = BLOCK
        token -= (BLOCK - T) * forth
        saved -= width * BN * BD
        slot += BN * BD
        u -= (BLOCK - T) * row_step
        delta -= (BLOCK - T) * row_step
        du -= (BLOCK - T) * row_step
        ddelta -= (BLOCK - T) * row_step
        B -= (BLOCK - T) * B_step
        dB -= (BLOCK - T) * B_step

    dA_sum, dskip_sum, dbias_sum = sums
    program = tl.program_id(0).to(tl.int64)
    tl.store(in_states(dA + program * BN * BD, unit, BN, BD), dA_sum)
    tl.store(in_states(dstart + program * BN * BD, unit, BN, BD), g)
    tl.store(dskip + program * BD + lane, dskip_sum)
    tl.store(dbias + program * BD + lane, dbias_sum)
