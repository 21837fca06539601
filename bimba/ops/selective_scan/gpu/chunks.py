# Triton's compiler reads this file: it knows no starred tuples and no types.
# mypy: ignore-errors
"""For narrow models and few samples: the steps cut into chunks, so that there are programs enough to fill the GPU.

A chunk is entered in a state that is known only when all before it are done. But the recurrence is linear: a chunk that
takes the sum S of its steps turns h into exp(S A) h + (what it makes of 0). So first all chunks run from 0 at once and
keep only their last states (``chunk_states_kernel``); then the states that enter them are computed one after another,
which is little (``carry_kernel``); then the forward kernel runs all chunks at once again, each from its true state. The
backward pass does the same with the gradient of the state, from the end (``chunk_gradients_kernel``). Forward this
doubles the exponentials, backward it adds half to them: worth it where one pass would leave most of the GPU idle.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bimba.ops.selective_scan.gpu.common import (
    INTEGERS,
    decays_and_gains,
    in_states,
    lanes,
    load_row,
    load_tokens,
    place,
    row_of_query,
    token_of_query,
)
from bimba.ops.selective_scan.gpu.forward import (
    load_states,
    no_states,
    scan_steps,
    split_lanes,
    store_states,
    sum_over_parts,
)


@triton.jit(do_not_specialize=INTEGERS)
def chunk_states_kernel(
    u, delta, A, B, bias, states, totals,
    u_r, u_b, u_t, delta_r, delta_b, delta_t, batch, length, channels, chunk, chunks, reverse, unit,
    SOFTPLUS: tl.constexpr, PARTS: tl.constexpr,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid and inputs as of the forward kernel's. Writes what each chunk makes of 0 to states (R, B, chunks, C, BN, BD)
    and the sum of its steps to totals (R, B, chunks, D)."""
    W: tl.constexpr = min(4, BN // PARTS)
    row, r, b, k, block, back = place(tl.program_id(0) // PARTS, batch, channels, chunks, reverse, BD)
    width = tl.cdiv(channels, BD)  # in blocks
    of_block = tl.program_id(0) % PARTS * (BD // PARTS)  # this program's first channel in the block
    first = block * BD + of_block
    channel, part, state = split_lanes(BN, BD, PARTS)
    near = tl.minimum(channel, channels - first - 1)
    inside = tl.arange(0, BD // PARTS) < channels - first
    begin = k * chunk
    end = tl.minimum(begin + chunk, length)
    token = tl.where(back, length - 1 - begin, begin).to(tl.int64)
    far = tl.where(back, -1, 1).to(tl.int64)
    u += r * u_r + b * u_b + token * u_t + first
    delta += r * delta_r + b * delta_b + token * delta_t + first
    B += (row * length + begin) * N
    A = load_states(A + (r * width + block) * BN * BD + of_block, unit, channel, state, BN, BD, PARTS, W)
    bias = tl.load(bias + r * channels + first + near)
    h = no_states(A)
    h, total = scan_steps(
        h, None, u, delta, far * u_t, far * delta_t, A, bias, B, None, None, None, 0, begin, end, far, unit, channel,
        near, part, state, inside, channels, SOFTPLUS, N, BN, BD, T, PARTS, BLOCK,
    )  # fmt: skip
    here = row * chunks + k
    at = states + (here * width + block) * BN * BD + of_block
    store_states(at, h, unit, channel, state, BN, BD, PARTS, W)
    at = totals + here * channels + first + tl.arange(0, BD // PARTS)
    tl.store(at, sum_over_parts(total, BD, PARTS), mask=inside)


@triton.jit
def retreat(
    g, q, now, token, forth, delta, delta_step, near, A, bias, C, dy, query_index, lane, inside, channels, outputs,
    SOFTPLUS: tl.constexpr, N: tl.constexpr, BN: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """T steps back to ``token``: the gradient of the state, the next query and its token, and the sum of the steps."""
    delta_rows = load_tokens(delta, delta_step, near, T)
    decays, _, total = decays_and_gains(delta_rows, delta_rows, A, bias, SOFTPLUS, T)
    for t in tl.static_range(T - 1, -1, -1):
        if now == token + t * forth:
            row = row_of_query(q, outputs)
            dy_row = tl.load(dy + row * channels + lane, mask=inside, other=0.0)
            g += load_row(C + row * N, N, BN)[:, None] * dy_row[None, :]
            q -= forth
            now = token_of_query(query_index, q, outputs)
        g = decays[t] * g
    return g, q, now, total


@triton.jit(do_not_specialize=INTEGERS)
def chunk_gradients_kernel(
    delta, A, C, bias, query_index, next_query, dy, gradients, totals,
    delta_r, delta_b, delta_t, batch, length, channels, outputs, chunk, chunks, blocks, reverse, unit,
    SOFTPLUS: tl.constexpr, N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid and inputs as of the backward kernel's. Writes to gradients (R, B, chunks, C, BN, BD) that of the state
    before each chunk if that of the state after it is 0, and to totals (R, B, chunks, D) the sum of its steps."""
    row, r, b, k, block, back = place(tl.program_id(0), batch, channels, chunks, reverse, BD)
    width = tl.cdiv(channels, BD)  # in blocks
    first = block * BD
    lane, inside, near = lanes(channels, block, BD)
    begin = k * chunk
    end = tl.minimum(begin + chunk, length)
    token = tl.where(back, length - end, end - 1)  # the chunk's last step's
    forth = tl.where(back, -1, 1)
    delta_step = forth.to(tl.int64) * delta_t
    delta += r * delta_r + b * delta_b + token.to(tl.int64) * delta_t + first
    C += row * outputs * N
    dy += row * outputs * channels + first
    A = tl.load(in_states(A + (r * width + block) * BN * BD, unit, BN, BD))
    bias = tl.load(bias + r * channels + first + near)
    q = token
    if query_index is not None:
        q = tl.load(next_query + back.to(tl.int32) * (blocks + 1) + tl.cdiv(end, BLOCK)) - forth
    now = token_of_query(query_index, q, outputs)
    g = tl.zeros([BN, BD], tl.float32)
    total = tl.zeros([BD], tl.float32)
    tiles = (end - begin) // T
    for _ in range(end - begin - tiles * T):
        g, q, now, steps = retreat(
            g, q, now, token, forth, delta, delta_step, near, A, bias, C, dy, query_index, lane, inside, channels,
            outputs, SOFTPLUS, N, BN, 1,
        )  # fmt: skip
        total += steps
        token -= forth
        delta -= delta_step
    token -= (T - 1) * forth
    delta -= (T - 1) * delta_step
    for _ in range(tiles):
        g, q, now, steps = retreat(
            g, q, now, token, forth, delta, delta_step, near, A, bias, C, dy, query_index, lane, inside, channels,
            outputs, SOFTPLUS, N, BN, T,
        )  # fmt: skip
        total += steps
        token -= T * forth
        delta -= T * delta_step
    here = row * chunks + k
    tl.store(in_states(gradients + (here * width + block) * BN * BD, unit, BN, BD), g)
    tl.store(totals + here * channels + first + lane, total, mask=inside)


@triton.jit(do_not_specialize=INTEGERS)
def carry_kernel(
    A, states, totals, edge, batch, channels, chunks, unit,
    BACKWARD: tl.constexpr, N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Grid: directions * samples * blocks of channels. ``states`` (R, B, chunks, C, BN, BD) is what each chunk makes of
    0, and becomes what enters it; edge (R, B, C, BN, BD) enters the first, or the last if BACKWARD; None: zeros."""
    row, r, _, _, block, _ = place(tl.program_id(0), batch, channels, 1, 0, BD)
    width = tl.cdiv(channels, BD)  # in blocks
    first = block * BD
    lane, inside, _ = lanes(channels, block, BD)
    A = tl.load(in_states(A + (r * width + block) * BN * BD, unit, BN, BD))
    h = tl.zeros([BN, BD], tl.float32)
    if edge is not None:
        h = tl.load(in_states(edge + (row * width + block) * BN * BD, unit, BN, BD))
    for i in range(chunks):
        here = row * chunks + i
        if BACKWARD:
            here = row * chunks + chunks - 1 - i
        at = in_states(states + (here * width + block) * BN * BD, unit, BN, BD)
        own = tl.load(at)
        total = tl.load(totals + here * channels + first + lane, mask=inside, other=0.0)
        tl.store(at, h)
        h = tl.exp2(A * total[None, :]) * h + own
