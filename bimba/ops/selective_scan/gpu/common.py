# Triton's compiler reads this file: it knows no starred tuples and no types.
# mypy: ignore-errors
# ruff: noqa: RUF005
"""What the kernels share: who scans what, rows of tokens, the step size, the queries, the sum over channels."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# Arguments that are not compiled in: Triton would make another kernel for each that is 1 or a multiple of 16.
INTEGERS = ["batch", "length", "channels", "outputs", "chunk", "chunks", "blocks", "reverse", "unit"]
INTEGERS += ["u_r", "u_b", "u_t", "delta_r", "delta_b", "delta_t"]


@triton.jit
def place(program, batch, channels, chunks, reverse, BD: tl.constexpr):
    """A program's row (direction and sample), direction, sample, chunk, block of channels; whether it runs back."""
    blocks = tl.cdiv(channels, BD)
    block = program % blocks
    chunk = program // blocks % chunks
    row = program // blocks // chunks
    direction = row // batch
    back = direction != reverse  # direction 0 runs back if reverse is 1, direction 1 if it is 0
    return row.to(tl.int64), direction.to(tl.int64), (row % batch).to(tl.int64), chunk, block, back


@triton.jit
def lanes(channels, block, BD: tl.constexpr):
    """(BD,) each: the threads' numbers, which of them have a channel in this block, and where each of them reads.

    A thread without one reads the last one's numbers and stores nothing.
    """
    lane = tl.arange(0, BD)
    rest = channels - block * BD
    return lane, lane < rest, tl.minimum(lane, rest - 1)


@triton.jit
def in_states(base, unit, BN: tl.constexpr, BD: tl.constexpr):
    """Addresses (BN, BD) of a state at ``base``: a thread holds one, the distances to the others are constants."""
    return (base + tl.arange(0, BD) * unit)[None, :] + tl.arange(0, BN)[:, None] * BD


@triton.jit
def load_row(base, N: tl.constexpr, BN: tl.constexpr):
    """(BN,) of (N,) float32 at ``base``: one token's B or C."""
    n = tl.arange(0, BN)
    if N == BN:
        return tl.load(base + n)  # without a mask: four numbers an instruction
    else:
        return tl.load(base + n, mask=n < N, other=0.0)


@triton.jit
def load_tokens(base, step, lane, T: tl.constexpr):
    """T rows (BD,) of u or delta as float32, ``step`` elements apart; ``base`` is the first one's first channel."""
    rows = ()
    for _ in tl.static_range(T):
        rows = rows + (tl.load(base + lane).to(tl.float32),)
        base += step
    return rows


@triton.jit
def softplus(x):
    """log(1 + exp(x)) and its derivative, to 2e-7 of their value wherever they lie.

    max(x, 0) + log(1 + z) with z = exp(-|x|), and log(1 + z) / z by a polynomial of degree 8 whose largest error on
    [0, 1] is least: the GPU's own logarithm loses the digits of a small step, and small steps are the usual ones.
    """
    z = tl.exp2(tl.abs(x) * -LOG2E)
    p = 0.005364818964153528 * z - 0.03006577305495739
    p = p * z + 0.0792045071721077
    p = p * z - 0.13753800094127655
    p = p * z + 0.191536545753479
    p = p * z - 0.24857163429260254
    p = p * z + 0.3332132399082184
    p = p * z - 0.49999648332595825
    p = p * z + 1.0
    slope = tl.where(x >= 0, 1.0, z) / (1.0 + z)
    return tl.maximum(x, 0.0) + z * p, slope  # of NaN both are NaN: z is


@triton.jit
def step_size(delta, bias, SOFTPLUS: tl.constexpr):
    """A token's step (BD,) and its derivative by delta."""
    x = delta + bias
    if SOFTPLUS:
        return softplus(x)
    else:
        return x, tl.full(x.shape, 1.0, tl.float32)


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
def token_of_query(query_index, q, outputs):
    """The token of query q, which is row q of y, dy and C; -2 if there is no such query. No index: token q."""
    exists = (q >= 0) & (q < outputs)
    if query_index is None:
        return tl.where(exists, q, -2)
    else:
        return tl.load(query_index + q, mask=exists, other=-2)


@triton.jit
def row_of_query(q, outputs):
    """Where to read for query q, int64: its row, or one that exists if it does not (row 0 if there is none at all)."""
    return tl.maximum(tl.minimum(q, outputs - 1), 0).to(tl.int64)


@triton.jit
def sum_over_channels(x):
    """(BN, 32) -> (BN,).

    By halves, neighbour to neighbour, and not by tl.sum alone: splitting makes the compiler pass x through shared
    memory once, after which a state's channels are in one or two threads. That is 2 instructions an element; tl.sum
    exchanges every state's value between all threads five times, 10 instructions.
    """
    for _ in tl.static_range(4):
        even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
        x = even + odd
    return tl.sum(x, axis=1)
