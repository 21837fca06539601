"""How fast is the selective scan? Every backend that runs here against its peers, in one process, on the same inputs.

    python benchmarks/scan.py                          forward: D=512, N=16, L=8192, read at 1,736 queries
    python benchmarks/scan.py --threads 2
    python benchmarks/scan.py --length 512 --queries 108 --backward
    python benchmarks/scan.py --backward --peers mambapy      the only peer whose backward is not quadratic in L
    python benchmarks/scan.py --lengths 512 1024 2048 4096 8192 --plot scan.png

Peers: the recurrence as mamba_ssm's ``selective_scan_ref`` writes it ("as mamba_ssm"), transformers' PyTorch path, and
mambapy's parallel scan. They compute every output; ours is asked for the queries alone, as the compressor does. Floors,
measured in the same run: the B x L x D x N exponentials alone with this package's exp2, and a copy of as many bytes as
inputs and outputs have. Nowhere in a scan is a matrix product: the floor of those is the layer's, in compressor.py.
With --lengths the table is that of each, a fifth of which is read, and --plot draws times against lengths, floors
included. Nothing is printed before outputs and gradients were found equal at the queries. Memory is how
far the process grows during one call. With --keep-memory what is freed stays with the process, which spares the peers,
who allocate much, most of their page faults.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peers
import torch
from measure import (
    agree,
    copy_s,
    exponentials_s,
    extra_memory_mib,
    header,
    keep_freed_memory,
    median_seconds,
    milliseconds,
)
from torch import Tensor

from bimba.ops import selective_scan
from bimba.ops.selective_scan import REGISTRY, cpp

TOLERANCE = 1e-4  # of the largest value, float32
Scan = Callable[..., Tensor]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--length", "--lengths", type=int, nargs="+", default=[8192], dest="lengths")
    parser.add_argument(
        "--queries", type=int, default=1736, help="outputs that ours computes at the longest (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backward", action="store_true", help="forward and backward")
    parser.add_argument("--peers", nargs="*", choices=peers.PEERS, default=list(peers.PEERS))
    parser.add_argument("--keep-memory", action="store_true", help="time with memory that is never given back")
    parser.add_argument("--plot", type=Path, help="draw times against lengths into this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    times_s: dict[int, dict[str, float]] = {}
    for length in options.lengths:
        of_length = measure(length, options)
        if of_length is None:
            return 1
        times_s[length] = of_length
    if options.plot:
        from plot import plot_scan

        plot_scan(times_s, f"D={options.channels} N={options.states}, {options.threads} thread(s)", options.plot)
    return 0


def measure(length: int, options: argparse.Namespace) -> dict[str, float] | None:
    """Prints the table of one length; seconds of each implementation and floor, None if outputs differ."""
    inputs = make_inputs(options.batch, options.channels, options.states, length)
    queries = round(options.queries * length / max(options.lengths))
    index = torch.linspace(0, length - 1, min(queries, length)).long().unique()
    scans: dict[str, Scan] = {name: peer(name, index) for name in options.peers}
    for name, backend in REGISTRY.backends.items():
        if backend.priority > 0 and backend.unavailable() is None:
            scans[name] = ours(name, index)
    runs = {name: partial(run, scan, inputs, options.backward) for name, scan in scans.items()}
    expected = run(ours("reference", index), inputs, options.backward)
    if not agree(runs, expected, "the reference", TOLERANCE):
        return None

    print(header() + ", float32")
    print(
        f"B={options.batch} D={options.channels} N={options.states} L={length}, {len(index)} queries, "
        f"median of {options.repeats}"
    )
    memory_mib, known_s = {}, {}
    for name, one in runs.items():
        memory_mib[name], known_s[name] = extra_memory_mib(one)
    if options.keep_memory:
        keep_freed_memory()
        known_s = {}  # what was slow has to be timed with that, too
    times_s = median_seconds(runs, options.repeats, known_s)
    floors_s = {"copy floor": copy_s(bytes_of(inputs, expected[0], options.backward))}
    if cpp.BACKEND.unavailable() is None:
        floors_s["exp floor"] = exponentials_s(inputs["u"].numel() * options.states)
    table("forward + backward" if options.backward else "forward", times_s, memory_mib, floors_s)
    return times_s | {f"({name})": floor_s for name, floor_s in floors_s.items()}


def make_inputs(batch: int, channels: int, states: int, length: int) -> dict[str, Tensor]:
    """Laid out as a layer's projections make them: (B, L, D) in memory."""
    torch.manual_seed(0)
    inputs = {
        "u": torch.randn(batch, length, channels).mT,
        "delta": torch.randn(batch, length, channels).mT,
        "A": -torch.arange(1.0, states + 1).repeat(channels, 1),
        "B": torch.randn(batch, length, states).mT,
        "C": torch.randn(batch, length, states).mT,
        "D": torch.ones(channels),
        "delta_bias": torch.randn(channels) - 4,
    }
    return {name: x.requires_grad_() for name, x in inputs.items()}


def bytes_of(inputs: dict[str, Tensor], y: Tensor, backward: bool) -> int:
    """Read and written at least: inputs and outputs, in the backward pass all of them again with their gradients."""
    own = sum(x.nbytes for x in inputs.values()) + y.nbytes
    return own if not backward else own + 2 * own


def ours(backend: str, index: Tensor) -> Scan:
    def scan(C: Tensor, **inputs: Tensor) -> Tensor:
        at_queries = C.mT.index_select(1, index).mT  # rows as they lie in memory, as the layer does
        y: Tensor = selective_scan(**inputs, C=at_queries, delta_softplus=True, query_index=index, backend=backend)
        return y

    return scan


def peer(name: str, index: Tensor) -> Scan:
    """A peer, read at the queries."""
    scan: Scan = peers.PEERS[name]
    return lambda **inputs: scan(**inputs).index_select(2, index)


def run(scan: Scan, inputs: dict[str, Tensor], backward: bool) -> list[Tensor]:
    """y, and the gradient of every input."""
    if not backward:
        with torch.no_grad():
            return [scan(**inputs)]
    y = scan(**inputs)
    return [y.detach(), *torch.autograd.grad(y.sum(), list(inputs.values()))]


def table(title: str, times_s: dict[str, float], memory_mib: dict[str, float], floors_s: dict[str, float]) -> None:
    """Fastest first; how many times slower than the fastest of ours, and than each floor."""
    best_s = min(time_s for name, time_s in times_s.items() if name not in peers.PEERS)
    heads = "".join(f"{'/ ' + name:>14s}" for name in floors_s)
    print(f"\n{title:20s}{'ms':>10s}{'/ best of ours':>16s}{heads}{'extra MiB':>11s}")
    for name, time_s in sorted(times_s.items(), key=lambda item: item[1]):
        over = "".join(f"{time_s / floor_s:13.1f}x" for floor_s in floors_s.values())
        print(f"{name:20s}{milliseconds(time_s):>10s}{time_s / best_s:15.1f}x{over}{memory_mib[name]:11.0f}")
    for name, floor_s in floors_s.items():
        print(f"{'(' + name + ')':20s}{milliseconds(floor_s):>10s}")


if __name__ == "__main__":
    sys.exit(main())
