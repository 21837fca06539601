"""What the compressor costs as videos get longer, against what else could be done with the same tokens.

    python benchmarks/compressor.py                        8 to 128 frames of 27 x 27 patches, hidden size 128
    python benchmarks/compressor.py --frames 8 16 --hidden-size 256 --backward --plot growth.png

Compared, on one thread, all reading T x 729 space-time tokens and T x 196 queries:

    pool                 the queries as pooled (bilinear), nothing learned
    query-only           MambaCompressor: behind the state, everything is computed at the queries only
    full                 the same layer with every position computed, then the queries selected
    perceiver            cross-attention of the queries to all tokens, and an MLP
    attention, queries   self-attention of all tokens, computed for the queries only (SDPA)
    attention, all       self-attention of all tokens (SDPA), the queries selected afterwards

SDPA never stores the L x L scores, so its memory grows linearly too; a materialised attention's would not. Here queries
grow with the frames, so the perceiver is quadratic as well. The exponent is that of the time from a quarter of the
longest video to the longest: 1 is linear, 2 quadratic. ``query-only`` and ``full`` must give the same outputs, and the
same gradients with --backward, or nothing is printed. Memory is how far the process grows beyond tokens and queries.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bimba.model.compressor import MambaCompressor
from bimba.model.mamba import AttentionMixer
from bimba.model.queries import pool_queries
from bimba.ops import deinterleave, interleave

GRID = 27
TOLERANCE = 1e-5  # of the largest value
Layer = Callable[[Tensor, Tensor], Tensor]


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


def layers(hidden_size: int) -> dict[str, Layer]:
    torch.manual_seed(0)
    compressor = MambaCompressor(hidden_size)
    attention = MambaCompressor(hidden_size, mixer="attention")
    for layer in (*compressor.layers, *attention.layers):
        nn.init.normal_(layer.mixer.out_proj.weight, std=0.02)  # zero at the start, which would hide what is computed

    def full(model: MambaCompressor) -> Layer:
        def run(tokens: Tensor, queries: Tensor) -> Tensor:
            index = model.query_index(tokens[0, ..., 0].numel(), queries[0, ..., 0].numel())
            combined = interleave(tokens.flatten(1, 3), queries.flatten(1, 2), index)
            return deinterleave(model.layers[0](combined), index)[1].view(queries.shape)

        return run

    assert isinstance(attention.layers[0].mixer, AttentionMixer)  # noqa: S101  # for the reader
    return {
        "pool": lambda tokens, queries: pool_queries(tokens).flatten(2, 3),
        "query-only": compressor,
        "full": full(compressor),
        "perceiver": Perceiver(hidden_size),
        "attention, queries": attention,
        "attention, all": full(attention),
    }


def run(layer: Layer, tokens: Tensor, queries: Tensor, backward: bool) -> list[Tensor]:
    """The refined queries, and the gradients of tokens and queries."""
    if not backward:
        with torch.no_grad():
            return [layer(tokens, queries)]
    y = layer(tokens, queries)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), (tokens, queries), allow_unused=True)]


def memory_kib(line: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0])


def measure(layer: Layer, tokens: Tensor, queries: Tensor, backward: bool, repeats: int) -> tuple[float, float]:
    """Median seconds of processor time, and how far the process grew, in MiB."""
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed counts as not there
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory_kib("VmRSS")
    times_s = []
    for _ in range(repeats):
        start = time.process_time()
        run(layer, tokens, queries, backward)
        times_s.append(time.process_time() - start)
    return statistics.median(times_s), (memory_kib("VmHWM") - before) / 1024


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--backward", action="store_true", help="forward and backward")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--longest-attention", type=int, default=64, help="frames at most (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="draw time against frames into this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    candidates = layers(options.hidden_size)
    results: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in candidates}
    for frames in options.frames:
        tokens = torch.randn(1, frames, GRID, GRID, options.hidden_size).requires_grad_()
        queries = pool_queries(tokens.detach()).flatten(2, 3).requires_grad_()
        if frames == options.frames[0]:
            pairs = zip(*(run(candidates[name], tokens, queries, options.backward) for name in ("query-only", "full")))
            error = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
            if not error <= TOLERANCE:
                print(f"query-only differs from full by {error:.1e} (limit {TOLERANCE:.0e}): no speed is printed.")
                return 1
        for name, layer in candidates.items():
            if not name.startswith("attention") or frames <= options.longest_attention:
                results[name][frames] = measure(layer, tokens, queries, options.backward, options.repeats)

    print(f"torch {torch.__version__}, hidden size {options.hidden_size}, 1 thread, float32, "
          f"{'forward + backward' if options.backward else 'forward'}: ms (peak MiB)")  # fmt: skip
    print(f"{'frames':20s}" + "".join(f"{frames:>16d}" for frames in options.frames) + f"{'exponent':>10s}")
    for name, of_name in results.items():
        cells = [f"{of_name[f][0] * 1e3:.0f} ({of_name[f][1]:.0f})" if f in of_name else "-" for f in options.frames]
        print(f"{name:20s}" + "".join(f"{cell:>16s}" for cell in cells) + f"{exponent(of_name):>10s}")
    longest = options.frames[-1]
    ratio = results["full"][longest][0] / results["query-only"][longest][0]
    print(f"query-only is {ratio:.2f}x as fast as full at {longest} frames.")
    if options.plot:
        plot(results, options.plot)
    return 0


def exponent(of_name: dict[int, tuple[float, float]]) -> str:
    """Growth of the time with the number of frames, between the longest video and one at most a quarter of it."""
    longest = max(of_name, default=0)
    shorter = [frames for frames in of_name if frames * 4 <= longest]
    if not shorter:
        return "-"
    start = max(shorter)
    return f"{math.log(of_name[longest][0] / of_name[start][0]) / math.log(longest / start):.2f}"


def plot(results: dict[str, dict[int, tuple[float, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.5, 4.5), layout="constrained")
    for name, of_name in results.items():
        axes.loglog(list(of_name), [time_s * 1e3 for time_s, _ in of_name.values()], marker="o", label=name)
    frames = sorted({f for of_name in results.values() for f in of_name})
    axes.set_xticks(frames, [str(f) for f in frames], minor=False)
    axes.minorticks_off()
    axes.set(xlabel="frames of 27 x 27 patches", ylabel="ms, one thread", title="Time of one compressor layer")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
