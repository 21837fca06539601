"""What the compressor costs as videos get longer, against what else could be done with the same tokens.

    python benchmarks/compressor.py                        8 to 128 frames of 27 x 27 patches, hidden size 128
    python benchmarks/compressor.py --frames 16 --hidden-size 256 --backward
    python benchmarks/compressor.py --frames 16 --hidden-size 256 --dtype bfloat16
    python benchmarks/compressor.py --plot growth.png
    python benchmarks/compressor.py --every --frames 8     all compressors there are (every_compressor.py)
    python benchmarks/compressor.py --gpu                  the 7B layer in bfloat16, 64 and 256 frames

Compared, all reading T x 729 space-time tokens and T x 196 queries:

    pool                 the queries as pooled (bilinear), nothing learned
    query-only           MambaCompressor: behind the state, everything is computed at the queries only
    streamed             the same, 4,096 positions at a time
    every position       the same layer, all at once, computed at every position; the queries selected afterwards
    original's way       the same function in the original's order: every position, flipped copies; on our scan
    original's, ref scan the same on the recurrence as mamba_ssm's reference writes it; float32 and forward only
    perceiver            cross-attention of the queries to all tokens, and an MLP
    attention, queries   self-attention of all tokens, computed for the queries only (SDPA)
    attention, all       self-attention of all tokens (SDPA), the queries selected afterwards

Two ratios, which say different things. Against "every position" it is what reading at the queries alone saves: outputs,
gate, out_proj and residual of all other positions; all else is the same code. Against "original's way" it is that, and
how the layer is laid out: channels first, which our scan op has to transpose, flipped copies for the backward
direction, a buffer that is filled, PyTorch's convolution. State both; never credit all of it to the idea.

SDPA never stores the L x L scores, so its memory grows linearly too; a materialised attention's would not. Here queries
grow with the frames, so the perceiver is quadratic as well. The exponent is that of the time from a quarter of the
longest video to the longest: 1 is linear, 2 quadratic. The five that scan, as far as they have a row, must give the
same outputs on the first video, streamed in four pieces, and with --backward the same gradients of tokens, queries
and all parameters, or nothing is printed. Memory is how far the process grows beyond tokens and queries; a candidate
that takes more than 5 seconds is called once. The floors are the matrix products and exponentials that query-only
cannot avoid, and reading its inputs and writing its output once, at the rates measured in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peers
import torch
from layer import GRID, EveryPosition, Layer, Ours, make, quarter, run
from measure import (
    agree,
    copy_s,
    exponentials_s,
    extra_memory_mib,
    header,
    keep_freed_memory,
    matrix_product_s,
    median_seconds,
    milliseconds,
)
from original import OriginalsWay
from torch import Tensor, nn

from bimba.model.mamba import MambaMixer
from bimba.model.queries import pool_queries
from bimba.ops.selective_scan import cpp
from bimba.ops.selective_scan.inputs import silu_gate

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # of the largest value
REFERENCE = "original's, ref scan"  # slow, of float32, and its backward pass is quadratic in the length
COPIED = 2**28  # bytes, more than caches hold
FULL = ("every position", "original's way", REFERENCE)
Results = dict[str, dict[int, tuple[float, float]]]  # candidate -> frames -> seconds, MiB


class Perceiver(nn.Module):
    """One cross-attention layer: the queries look at all tokens."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(hidden_size, 8, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size)
        )

    def forward(self, tokens: Tensor, queries: Tensor) -> Tensor:
        flat, q = tokens.flatten(1, 3), queries.flatten(1, 2)
        q = q + self.attention(q, flat, flat, need_weights=False)[0]
        return (q + self.mlp(q)).view(queries.shape)


def layers(hidden_size: int, dtype: torch.dtype) -> dict[str, Layer]:
    compressor, attention = make(hidden_size, dtype), make(hidden_size, dtype, mixer="attention")
    return {
        "pool": lambda tokens, queries: pool_queries(tokens).flatten(2, 3),
        "query-only": Ours(compressor),
        "streamed": Ours(compressor, chunk_tokens=4096),
        "every position": EveryPosition(compressor),
        "original's way": OriginalsWay(compressor),
        REFERENCE: OriginalsWay(compressor, scan=reference_scan),
        "perceiver": Perceiver(hidden_size).to(dtype),
        "attention, queries": attention,
        "attention, all": EveryPosition(attention),
    }


def reference_scan(*inputs: Tensor) -> Tensor:
    u, delta, A, B, C, D, z, delta_bias = inputs
    return silu_gate(peers.mamba_ssm_scan(u, delta, A, B, C, D, delta_bias), z)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=None, help="default: 8 16 32 64 128, on a GPU 64 256")
    parser.add_argument("--hidden-size", type=int, default=None, help="default: 128, on a GPU 3584")
    parser.add_argument("--backward", action="store_true", help="forward and backward")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--longest-attention", type=int, default=128, help="frames at most (default: %(default)s)")
    parser.add_argument("--longest-reference", type=int, default=16, help="frames at most (default: %(default)s)")
    parser.add_argument("--keep-memory", action="store_true", help="time with memory that is never given back")
    parser.add_argument("--plot", type=Path, help="draw time and memory against frames into this file")
    parser.add_argument("--gpu", action="store_true", help="measure on the GPU, against the kernels installed there")
    parser.add_argument("--every", action="store_true", help="all compressors, on the first of --frames (default: 8)")
    options = parser.parse_args(argv)
    if options.gpu:
        import gpu

        return gpu.main(options.frames or [64, 256], options.hidden_size or 3584, options.repeats)
    torch.set_num_threads(options.threads)
    if options.every:
        import every_compressor

        frames, hidden_size = (options.frames or [8])[0], options.hidden_size or 128
        dtype = getattr(torch, options.dtype)
        return every_compressor.main(frames, hidden_size, dtype, options.backward, options.repeats)
    options.frames = options.frames or [8, 16, 32, 64, 128]
    options.hidden_size = options.hidden_size or 128
    candidates = layers(options.hidden_size, getattr(torch, options.dtype))
    results = measure(candidates, options)
    if results is None:
        return 1
    report(candidates, results, options)
    if options.plot:
        from plot import plot

        plot(results, options.plot)
    return 0


def measure(candidates: dict[str, Layer], options: argparse.Namespace) -> Results | None:
    """None, and a line that says why, if what should be equal is not. Memory first: it may be kept afterwards."""
    if not agree_at(options.frames[0], candidates, options):
        return None
    first: dict[int, dict[str, tuple[float, float]]] = {}  # MiB, seconds
    for frames in options.frames:
        first[frames] = {name: extra_memory_mib(call) for name, call in calls(candidates, frames, options).items()}
    if options.keep_memory:
        keep_freed_memory()
    results: Results = {name: {} for name in candidates}
    for frames in options.frames:
        known_s = {} if options.keep_memory else {name: time_s for name, (_, time_s) in first[frames].items()}
        times_s = median_seconds(calls(candidates, frames, options), options.repeats, known_s)
        for name, time_s in times_s.items():
            results[name][frames] = (time_s, first[frames][name][0])
    return results


def calls(
    candidates: dict[str, Layer], frames: int, options: argparse.Namespace
) -> dict[str, Callable[[], list[Tensor]]]:
    """Each candidate, on the same inputs, but those that would take too long."""
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(frames)
    tokens = torch.randn(1, frames, GRID, GRID, options.hidden_size).to(dtype)
    queries = pool_queries(tokens).flatten(2, 3)
    left_out = set()
    if frames > options.longest_attention:
        left_out |= {"attention, queries", "attention, all"}
    if frames > options.longest_reference or options.backward or dtype != torch.float32:
        left_out.add(REFERENCE)
    return {
        name: partial(run, layer, tokens, queries, options.backward)
        for name, layer in candidates.items()
        if name not in left_out
    }


def agree_at(frames: int, candidates: dict[str, Layer], options: argparse.Namespace) -> bool:
    """Whether those that compute the same function give the same results; says so if not."""
    ours: Ours = candidates["query-only"]  # type: ignore[assignment]
    pieces = Ours(ours.compressor, quarter(frames))
    present = calls({**candidates, "streamed": pieces}, frames, options)
    expected = present["query-only"]()
    same = {name: present[name] for name in ("streamed", *FULL) if name in present}
    return agree(same, expected, "query-only", TOLERANCE[getattr(torch, options.dtype)])


def report(candidates: dict[str, Layer], results: Results, options: argparse.Namespace) -> None:
    what = "forward + backward" if options.backward else "forward"
    print(f"{header()}, hidden size {options.hidden_size}, {options.dtype}, {what}: ms (peak MiB)")
    print(f"{'frames':20s}" + "".join(f"{frames:>16d}" for frames in options.frames) + f"{'exponent':>10s}")
    for name, of_name in results.items():
        cells = [
            f"{milliseconds(of_name[f][0])} ({of_name[f][1]:.0f})" if f in of_name else "-" for f in options.frames
        ]
        print(f"{name:20s}" + "".join(f"{cell:>16s}" for cell in cells) + f"{exponent(of_name):>10s}")
    print_ratios(results)
    if not options.backward and cpp.BACKEND.unavailable() is None:
        longest = options.frames[-1]
        mixer = candidates["query-only"].compressor.layers[0].mixer  # type: ignore[attr-defined]
        print_floors(mixer, longest, getattr(torch, options.dtype), results["query-only"][longest][0])


def print_ratios(results: Results) -> None:
    """Against what computes everything, at the longest video that each pair has in common."""
    for name, other in itertools.product(("query-only", "streamed"), FULL):
        frames = max(set(results[name]) & set(results[other]), default=None)
        if frames is not None:
            (own_s, own_mib), (other_s, other_mib) = results[name][frames], results[other][frames]
            print(f"{name} against {other}, {frames} frames: {other_s / own_s:.2f}x as fast, "
                  f"{own_mib / other_mib:.2f}x the memory")  # fmt: skip


def print_floors(mixer: MambaMixer, frames: int, dtype: torch.dtype, query_only_s: float) -> None:
    """What a forward pass cannot do without, at this machine's rates."""
    hidden_size = mixer.in_proj.in_features
    num_queries = frames * math.ceil(GRID / 2) ** 2
    length = frames * GRID**2 + num_queries
    per_token = hidden_size * mixer.d_inner  # in_proj's x
    per_token += 2 * mixer.d_inner * (2 * mixer.dt_rank + 2 * mixer.d_state)  # x_proj and dt_proj, two directions
    per_query = 2 * hidden_size * mixer.d_inner  # gate, out_proj
    flop = 2.0 * (length * per_token + num_queries * per_query)
    exponentials = 2 * length * mixer.d_inner * mixer.d_state
    num_bytes = (length + num_queries) * hidden_size * dtype.itemsize + sum(p.nbytes for p in mixer.parameters())
    products_s, exponentials_alone_s = matrix_product_s(flop, dtype), exponentials_s(exponentials)
    floors_s = {"matrix products": products_s, "exponentials": exponentials_alone_s}
    floors_s |= {"the two, one after the other": products_s + exponentials_alone_s, "copies": copy_s(num_bytes)}
    for name, floor_s in floors_s.items():
        print(f"floor at {frames} frames, {name}: {milliseconds(floor_s)} ms; "
              f"query-only takes {query_only_s / floor_s:.1f} times as long.")  # fmt: skip
    print(f"rates: matrix products {flop / products_s / 1e9:.1f} GFLOP/s, "
          f"exponentials {exponentials / exponentials_alone_s / 1e9:.2f} billion/s, "
          f"copies {COPIED / copy_s(COPIED) / 1e9:.1f} GB/s (read and written)")  # fmt: skip


def exponent(of_name: dict[int, tuple[float, float]]) -> str:
    """Growth of the time with the number of frames, between the longest video and one at most a quarter of it."""
    longest = max(of_name, default=0)
    shorter = [frames for frames in of_name if frames * 4 <= longest]
    if not shorter:
        return "-"
    start = max(shorter)
    return f"{math.log(of_name[longest][0] / of_name[start][0]) / math.log(longest / start):.2f}"


if __name__ == "__main__":
    sys.exit(main())
