"""How fast is the selective scan? Every backend that runs here against its peers, in one process, on the same inputs.

    python benchmarks/scan.py                          forward: D=512, N=16, L=8192, read at 1,736 queries
    python benchmarks/scan.py --threads 2
    python benchmarks/scan.py --length 512 --queries 108 --backward
    python benchmarks/scan.py --backward --peers mambapy      the only peer whose backward is not quadratic in L

Peers: the recurrence as mamba_ssm's ``selective_scan_ref`` writes it ("as mamba_ssm"), transformers' PyTorch path, and
mambapy's parallel scan. They compute every output; ours is asked for the queries alone, as the compressor does. The
floor is the time that the B x L x D x N exponentials alone take, with this package's exp2. Nothing is printed before
outputs and gradients were found equal at the queries. Memory is how far the process grows during one call.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bimba.ops import selective_scan
from bimba.ops.extension import build
from bimba.ops.selective_scan import REGISTRY, cpp

TOLERANCE = 1e-4  # of the largest value, float32
PEERS = ("as mamba_ssm", "transformers", "mambapy")
Scan = Callable[..., Tensor]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--queries", type=int, default=1736, help="outputs that ours computes (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backward", action="store_true", help="forward and backward")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)

    inputs = make_inputs(options.batch, options.channels, options.states, options.length)
    index = torch.linspace(0, options.length - 1, min(options.queries, options.length)).long().unique()
    scans: dict[str, Scan] = {name: peer(name, index) for name in options.peers}
    for name in REGISTRY.backends:
        if name != "reference" and REGISTRY.backends[name].unavailable() is None:
            scans[name] = ours(name, index)
    expected = run(ours("reference", index), inputs, options.backward)
    for name, scan in scans.items():
        error = largest_error(run(scan, inputs, options.backward), expected)
        if error > TOLERANCE:
            print(f"{name} differs from the reference by {error:.1e} (limit {TOLERANCE:.0e}): no speed is printed.")
            return 1

    print(f"torch {torch.__version__}, {processor()}, {options.threads} thread(s), float32")
    print(
        f"B={options.batch} D={options.channels} N={options.states} L={options.length}, {len(index)} queries, "
        f"median of {options.repeats}"
    )
    memory = {name: extra_memory_mib(scan, inputs, options.backward) for name, scan in scans.items()}
    times_s = measure(scans, inputs, options.backward, options.repeats)
    floor_s = exponentials_s(inputs, options.repeats) if cpp.BACKEND.unavailable() is None else None
    table("forward + backward" if options.backward else "forward", times_s, memory, floor_s)
    return 0


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


def ours(backend: str, index: Tensor) -> Scan:
    def scan(C: Tensor, **inputs: Tensor) -> Tensor:
        return selective_scan(
            **inputs, C=C.index_select(2, index), delta_softplus=True, query_index=index, backend=backend
        )

    return scan


def peer(name: str, index: Tensor) -> Scan:
    """A peer, read at the queries."""
    scan = {"as mamba_ssm": mamba_ssm_scan, "transformers": transformers_scan, "mambapy": mambapy_scan}[name]
    return lambda **inputs: scan(**inputs).index_select(2, index)


def mamba_ssm_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """The recurrence as mamba_ssm's reference has it: decays and inputs of all positions at once, then a loop."""
    step = F.softplus(delta + delta_bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", step, A))
    added = torch.einsum("bdl,bnl,bdl->bdln", step, B, u)
    state = A.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + added[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    return torch.stack(outputs, dim=2) + u * D[:, None]


def transformers_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **others: Tensor) -> Tensor:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    y: Tensor = mamba_selective_scan(u, delta, A, B, C, delta_softplus=True, **others)
    return y


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    from mambapy.mamba import MambaBlock

    step = F.softplus(delta.mT + delta_bias)
    y: Tensor = MambaBlock.selective_scan(None, u.mT, step, A, B.mT, C.mT, D)  # type: ignore[arg-type]  # no self in it
    return y.mT


def run(scan: Scan, inputs: dict[str, Tensor], backward: bool) -> list[Tensor]:
    """y, and the gradient of every input."""
    if not backward:
        with torch.no_grad():
            return [scan(**inputs)]
    y = scan(**inputs)
    return [y.detach(), *torch.autograd.grad(y.sum(), list(inputs.values()))]


def largest_error(got: list[Tensor], expected: list[Tensor]) -> float:
    """Relative to the largest value of each tensor; not-a-number counts as infinite."""
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True)]
    return max(error if error == error else float("inf") for error in errors)


def measure(scans: dict[str, Scan], inputs: dict[str, Tensor], backward: bool, repeats: int) -> dict[str, float]:
    """Median seconds of each, taking turns; with one thread of processor time, which others' load leaves alone."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times_s: dict[str, list[float]] = {name: [] for name in scans}
    for _ in range(repeats):
        for name, scan in scans.items():
            start = clock()
            run(scan, inputs, backward)
            times_s[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in times_s.items()}


def exponentials_s(inputs: dict[str, Tensor], repeats: int) -> float:
    """Seconds that exp2 of B x L x D x N numbers takes, spread over the threads, all in the cache."""
    folder = Path(cpp.__file__).parent / "csrc"
    library = build("bimba_floor", [Path(__file__).parent / "floor.cpp"], [folder / "vec.h"])
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    count = inputs["u"].numel() * inputs["A"].shape[1]
    times_s = []
    for _ in range(repeats):
        start = clock()
        library.bimba_exponentials(ctypes.c_int64(count), ctypes.c_int64(torch.get_num_threads()))
        times_s.append(clock() - start)
    return statistics.median(times_s)


def extra_memory_mib(scan: Scan, inputs: dict[str, Tensor], backward: bool) -> float:
    """How far the process grows during one call, in MiB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed counts as not there
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory_kib("VmRSS")
    run(scan, inputs, backward)
    return (memory_kib("VmHWM") - before) / 1024


def memory_kib(line: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0])


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(title: str, times_s: dict[str, float], memory_mib: dict[str, float], floor_s: float | None) -> None:
    """Fastest first; how many times slower than the fastest of ours, and than the floor."""
    best_s = min(time_s for name, time_s in times_s.items() if name not in PEERS)
    print(f"\n{title:20s}{'ms':>10s}{'/ best of ours':>16s}{'/ exp floor':>13s}{'extra MiB':>11s}")
    for name, time_s in sorted(times_s.items(), key=lambda item: item[1]):
        over_floor = "" if floor_s is None else f"{time_s / floor_s:.1f}x"
        print(f"{name:20s}{time_s * 1e3:10.1f}{time_s / best_s:15.1f}x{over_floor:>13s}{memory_mib[name]:11.0f}")
    if floor_s is not None:
        print(f"{'(exp floor)':20s}{floor_s * 1e3:10.1f}")


if __name__ == "__main__":
    sys.exit(main())
