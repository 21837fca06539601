# Triton's compiler reads this file: it knows no starred tuples and no types.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM102, SIM108
"""The forward kernel: y at the queries, the last state, and for the backward pass the state every ``BLOCK`` steps.

At 7B size there is a block of 32 channels for each of the GPU's schedulers and no more, so that what a warp waits for
is time lost, unless another warp can run. Hence:

* The states of a channel are shared by ``PARTS`` threads of a warp (lane = part * (BD / PARTS) + channel). A block of
  channels is then scanned by PARTS warps, each with a PARTS-th of the exponentials, and no warp waits for another: what
  crosses threads, the sum over states at queries, does so inside a warp.
* A step's size is computed once, not PARTS times: of PARTS neighbouring steps each part computes one, and the others
  fetch it from its thread. A thread's states are one number each of a tuple of (W, BD) tensors, a step's size is (BD,).
* Nothing is read when it is needed. While step t is done, the decays of step t + 1 are computed; the step sizes of a
  group of steps while those before it are done; B is read one group ahead, u and delta two, C when the query
  before is met. Whether a step is a query is a bit of a number that was read with the tile before: compared with query
  tokens, which are read one by one, it would make every step wait for what was read last, B too, because loads share
  few scoreboards.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bimba.ops.selective_scan.gpu.common import INTEGERS, place, step_size


@triton.jit
def split_lanes(BN: tl.constexpr, BD: tl.constexpr, PARTS: tl.constexpr):
    """(BD,) each: the threads' channels, their parts and the first state of each."""
    lane = tl.arange(0, BD)
    part = lane // (BD // PARTS)
    return lane % (BD // PARTS), part, part * (BN // PARTS)


@triton.jit
def at_states(base, unit, channel, state, BN: tl.constexpr, BD: tl.constexpr, PARTS: tl.constexpr, W: tl.constexpr):
    """Addresses, (W, BD) each, of a thread's states at ``base``, where a block's states lie as (BN, BD)."""
    thread = base + state * BD + channel * unit
    at = ()
    for p in tl.static_range(BN // PARTS // W):
        at = at + (thread[None, :] + (p * W + tl.arange(0, W))[:, None] * BD,)
    return at


@triton.jit
def no_states(A):
    """Zeros for a thread's states."""
    h = ()
    for p in tl.static_range(len(A)):
        h = h + (tl.zeros_like(A[p]),)
    return h


@triton.jit
def load_states(base, unit, channel, state, BN: tl.constexpr, BD: tl.constexpr, PARTS: tl.constexpr, W: tl.constexpr):
    """A thread's states at ``base``, (W, BD) each."""
    at = at_states(base, unit, channel, state, BN, BD, PARTS, W)
    h = ()
    for p in tl.static_range(len(at)):
        h = h + (tl.load(at[p]),)
    return h


@triton.jit
def store_states(
    base, h, unit, channel, state, BN: tl.constexpr, BD: tl.constexpr, PARTS: tl.constexpr, W: tl.constexpr
):
    """The inverse of ``load_states``."""
    at = at_states(base, unit, channel, state, BN, BD, PARTS, W)
    for p in tl.static_range(len(at)):
        tl.store(at[p], h[p])


@triton.jit
def load_split_row(base, state, N: tl.constexpr, BN: tl.constexpr, PARTS: tl.constexpr, W: tl.constexpr):
    """A token's B or C, (N,) float32 at ``base``, of a thread's states: (W, BD) each, one instruction if W is 4."""
    row = ()
    for p in tl.static_range(BN // PARTS // W):
        n = state[None, :] + (p * W + tl.arange(0, W))[:, None]
        if N == BN:
            row = row + (tl.load(base + n),)
        else:
            row = row + (tl.load(base + n, mask=n < N, other=0.0),)
    return row


@triton.jit
def load_group(u, delta, u_step, delta_step, G: tl.constexpr, PARTS: tl.constexpr):
    """u and delta of G steps, as they lie: G / PARTS pairs of (BD,), each part with the rows of its own steps."""
    rows = ()
    for i in tl.static_range(G // PARTS):
        rows = rows + ((tl.load(u + i * PARTS * u_step), tl.load(delta + i * PARTS * delta_step)),)
    return rows


@triton.jit
def load_B(B, state, N: tl.constexpr, BN: tl.constexpr, G: tl.constexpr, PARTS: tl.constexpr, W: tl.constexpr):
    """B of G steps."""
    rows = ()
    for t in tl.static_range(G):
        rows = rows + (load_split_row(B + t * N, state, N, BN, PARTS, W),)
    return rows


@triton.jit
def shared_step(u, delta, bias, SOFTPLUS: tl.constexpr):
    """Of PARTS steps, each part its own: the step, step * u and u, float32."""
    step, _ = step_size(delta.to(tl.float32), bias, SOFTPLUS)
    u = u.to(tl.float32)
    return step, step * u, u


@triton.jit
def shared_steps(rows, bias, SOFTPLUS: tl.constexpr):
    """The same of what ``load_group`` read."""
    steps = ()
    for i in tl.static_range(len(rows)):
        steps = steps + (shared_step(rows[i][0], rows[i][1], bias, SOFTPLUS),)
    return steps


@triton.jit
def of_step(x, t: tl.constexpr, channel, BD: tl.constexpr, PARTS: tl.constexpr):
    """(BD,): what the part that computed step t has."""
    if PARTS == 1:
        return x
    else:
        return tl.gather(x, channel + t % PARTS * (BD // PARTS), 0)


@triton.jit
def sum_over_parts(x, BD: tl.constexpr, PARTS: tl.constexpr):
    """(BD,) -> (BD / PARTS,)."""
    if PARTS == 1:
        return x
    else:
        return tl.sum(tl.reshape(x, [PARTS, BD // PARTS]), axis=0)


@triton.jit
def decays_of(A, step):
    """exp(step A), (W, BD) each."""
    decays = ()
    for p in tl.static_range(len(A)):
        decays = decays + (tl.exp2(A[p] * step[None, :]),)
    return decays


@triton.jit
def one_step(h, decays, gain, b):
    """The state after one step."""
    after = ()
    for p in tl.static_range(len(h)):
        after = after + (decays[p] * h[p] + gain[None, :] * b[p],)
    return after


@triton.jit
def load_word(query_bits, at):
    """The bits that say which of a tile's steps are queries: all, if there is no index."""
    if query_bits is None:
        return tl.full([], -1, tl.int32)
    else:
        return tl.load(query_bits + at)


@triton.jit
def answer(
    h, direct, query, far, channel, state, inside, channels,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, PARTS: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Stores y of the query that is met, in state h: sum of C h, and ``direct``, D u in one part and 0 in the others.

    ``query`` is (the addresses of its y and C; its C, which was read when the query before it was met). The next one is
    returned; where there is none, the row of C beside the first or last is read.
    """
    y, C, c = query
    out = direct
    for p in tl.static_range(len(h)):
        out += tl.sum(h[p] * c[p], axis=0)
    tl.store(y + tl.arange(0, BD // PARTS), sum_over_parts(out, BD, PARTS), mask=inside)
    C += far * N
    return y + far * channels, C, load_split_row(C, state, N, BN, PARTS, W)


@triton.jit
def scan_group(
    h, total, query, decays, ours, coming, rows, word, bit, A, skip, far, channel, part, state, inside, channels,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, G: tl.constexpr, PARTS: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """G steps: the state, the sum of the steps and the next query after them, and the decays of the step that follows.

    ``ours`` and ``rows`` are the steps and B; ``coming`` are the next group's steps, of which the first is used.
    """
    for t in tl.static_range(G):
        own = ours[t // PARTS]
        if t + 1 < G:
            decays_next = decays_of(A, of_step(ours[(t + 1) // PARTS][0], t + 1, channel, BD, PARTS))
        else:
            decays_next = decays_of(A, of_step(coming[0][0], 0, channel, BD, PARTS))
        h = one_step(h, decays, of_step(own[1], t, channel, BD, PARTS), rows[t])
        decays = decays_next
        if t % PARTS == 0:
            total += own[0]
        if query is not None:
            if (word >> (bit + t)) & 1:
                direct = tl.zeros_like(total)
                if skip is not None:
                    direct = tl.where(part == t % PARTS, skip * own[2], 0.0)
                query = answer(h, direct, query, far, channel, state, inside, channels, N, BN, BD, PARTS, W)
    return h, total, query, decays


@triton.jit
def scan_steps(
    h, query, u, delta, u_step, delta_step, A, bias, B, skip, query_bits, saved, saved_step, begin, end, far, unit,
    channel, near, part, state, inside, channels,
    SOFTPLUS: tl.constexpr,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Steps ``begin`` to ``end``: the state after them, and (BD,) of each part the sum of the steps that it computed.

    ``query``, ``query_bits``, ``saved`` may be None. A tile is two groups, a and b, so that what is read for one goes
    where what the other needs does not lie, and no register is copied to another.
    """
    W: tl.constexpr = min(4, BN // PARTS)
    G: tl.constexpr = T // 2
    total = tl.zeros_like(bias)
    word = load_word(query_bits, 0)
    whole = begin + (end - begin) // T * T
    if whole > begin:
        u_at, delta_at = u + near + part * u_step, delta + near + part * delta_step
        u_group, delta_group = G * u_step, G * delta_step
        ours_a = shared_steps(load_group(u_at, delta_at, u_step, delta_step, G, PARTS), bias, SOFTPLUS)
        read_b = load_group(u_at + u_group, delta_at + delta_group, u_step, delta_step, G, PARTS)
        rows_a = load_B(B, state, N, BN, G, PARTS, W)
        decays = decays_of(A, of_step(ours_a[0][0], 0, channel, BD, PARTS))
        for s in range(begin, whole, T):
            if saved is not None:
                if s % BLOCK == 0:
                    store_states(saved, h, unit, channel, state, BN, BD, PARTS, W)
                    saved += saved_step
            more = s + T < whole  # what is ahead of the last tile is the last tile
            word_next = load_word(query_bits, (s - begin) // T + 1)
            rows_b = load_B(B + G * N, state, N, BN, G, PARTS, W)
            ours_b = shared_steps(read_b, bias, SOFTPLUS)
            u_at += tl.where(more, T * u_step, 0)
            delta_at += tl.where(more, T * delta_step, 0)
            read_a = load_group(u_at, delta_at, u_step, delta_step, G, PARTS)
            read_b = load_group(u_at + u_group, delta_at + delta_group, u_step, delta_step, G, PARTS)
            h, total, query, decays = scan_group(
                h, total, query, decays, ours_a, ours_b, rows_a, word, 0, A, skip, far, channel, part, state,
                inside, channels, N, BN, BD, G, PARTS, W,
            )  # fmt: skip
            B += tl.where(more, T * N, 0)
            rows_a = load_B(B, state, N, BN, G, PARTS, W)
            ours_a = shared_steps(read_a, bias, SOFTPLUS)
            h, total, query, decays = scan_group(
                h, total, query, decays, ours_b, ours_a, rows_b, word, G, A, skip, far, channel, part, state,
                inside, channels, N, BN, BD, G, PARTS, W,
            )  # fmt: skip
            word = word_next
        B += T * N
        u += (whole - begin) * u_step
        delta += (whole - begin) * delta_step
    for s in range(whole, end):
        if saved is not None:
            if s % BLOCK == 0:
                store_states(saved, h, unit, channel, state, BN, BD, PARTS, W)
        step, gain, own = shared_step(tl.load(u + near), tl.load(delta + near), bias, SOFTPLUS)
        h = one_step(h, decays_of(A, step), gain, load_split_row(B, state, N, BN, PARTS, W))
        total += tl.where(part == 0, step, 0.0)
        if query is not None:
            if (word >> (s - whole)) & 1:
                direct = tl.zeros_like(bias)
                if skip is not None:
                    direct = tl.where(part == 0, skip * own, 0.0)
                query = answer(h, direct, query, far, channel, state, inside, channels, N, BN, BD, PARTS, W)
        u += u_step
        delta += delta_step
        B += N
    return h, total


@triton.jit(do_not_specialize=INTEGERS)
def forward_kernel(
    u, delta, A, B, C, skip, bias, starts, query_bits, next_query, y, last, saved,
    u_r, u_b, u_t, delta_r, delta_b, delta_t, batch, length, channels, outputs, chunk, chunks, blocks, reverse, unit,
    SOFTPLUS: tl.constexpr, SAVE: tl.constexpr, PARTS: tl.constexpr,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: directions * samples * chunks * blocks of BD channels * PARTS. ``chunk`` steps each, a multiple of BLOCK.

    u, delta (R, B, L, D) with strides u_r, u_b, u_t, 1; A (R, C, BN, BD), times log2(e); B (R, B, L, N),
    C (R, B, Q, N), skip, bias (R, D), all float32; starts (R, B, chunks, C, BN, BD) or None for zeros;
    query_bits (2, tiles + 1) and next_query (2, blocks + 1) int32 (see plan.py), or None where every token is a query;
    y (R, B, Q, D), last (R, B, C, BN, BD), saved (R, B, blocks, C, BN, BD), written if SAVE.
    """
    tl.static_assert(T // 2 % PARTS == 0 and BLOCK % T == 0 and BN % PARTS == 0)
    W: tl.constexpr = min(4, BN // PARTS)
    row, r, b, k, block, back = place(tl.program_id(0) // PARTS, batch, channels, chunks, reverse, BD)
    width = tl.cdiv(channels, BD)  # in blocks
    of_block = tl.program_id(0) % PARTS * (BD // PARTS)  # this program's first channel in the block
    first = block * BD + of_block
    channel, part, state = split_lanes(BN, BD, PARTS)
    near = tl.minimum(channel, channels - first - 1)  # below zero where the program has no channel at all
    inside = tl.arange(0, BD // PARTS) < channels - first
    begin = k * chunk
    end = tl.minimum(begin + chunk, length)
    token = tl.where(back, length - 1 - begin, begin)
    far = tl.where(back, -1, 1).to(tl.int64)
    u_step, delta_step = far * u_t, far * delta_t
    u += r * u_r + b * u_b + token.to(tl.int64) * u_t + first
    delta += r * delta_r + b * delta_b + token.to(tl.int64) * delta_t + first
    B += (row * length + begin) * N
    saved += ((row * blocks + begin // BLOCK) * width + block) * BN * BD + of_block

    A = load_states(A + (r * width + block) * BN * BD + of_block, unit, channel, state, BN, BD, PARTS, W)
    bias = tl.load(bias + r * channels + first + near)
    if skip is not None:
        skip = tl.load(skip + r * channels + first + near)
    if starts is not None:
        starts += ((row * chunks + k) * width + block) * BN * BD + of_block
        h = load_states(starts, unit, channel, state, BN, BD, PARTS, W)
    else:
        h = no_states(A)
    q = token
    if query_bits is not None:
        q = tl.load(next_query + back.to(tl.int32) * (blocks + 1) + begin // BLOCK)
        query_bits += back.to(tl.int32) * (tl.cdiv(length, T) + 1) + begin // T
    y += (row * outputs + q) * channels + first
    C += (row * outputs + q) * N
    query = (y, C, load_split_row(C, state, N, BN, PARTS, W))

    if not SAVE:
        saved = None
    h, _ = scan_steps(
        h, query, u, delta, u_step, delta_step, A, bias, B, skip, query_bits, saved, width * BN * BD, begin, end, far,
        unit, channel, near, part, state, inside, channels, SOFTPLUS, N, BN, BD, T, PARTS, BLOCK,
    )  # fmt: skip
    if k == chunks - 1:
        last += (row * width + block) * BN * BD + of_block
        store_states(last, h, unit, channel, state, BN, BD, PARTS, W)
