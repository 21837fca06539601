"""How fast is the selective scan? ``python benchmarks/selective_scan.py [--length 8192 --forward-only ...]``

Compares this package's backends with its own reference and with transformers' PyTorch path, all in one process, on
the same inputs, taking turns. Prints no speed before outputs and gradients have been found equal.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers.models.mamba.modeling_mamba import mamba_selective_scan

from bimba.ops import selective_scan
from bimba.ops.selective_scan import REGISTRY

TOLERANCE = 1e-4  # of the largest value, float32
Scan = Callable[..., Tensor]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--forward-only", action="store_true", help="transformers' backward is quadratic in the length")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)

    inputs = make_inputs(options.batch, options.channels, options.states, options.length)
    scans = {name: with_backend(name) for name in REGISTRY.backends if REGISTRY.refusal(name, *inputs.values()) is None}
    scans["transformers"] = transformers_scan
    backward = not options.forward_only

    expected = run(scans["reference"], inputs, backward)
    for name, scan in scans.items():
        error = largest_error(run(scan, inputs, backward), expected)
        if error > TOLERANCE:
            print(f"{name} differs from the reference by {error:.1e} (limit {TOLERANCE:.0e}): no speed is printed.")
            return 1

    print(
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {options.threads} thread(s), float32"
    )
    print(f"B={options.batch} D={options.channels} N={options.states} L={options.length}, {options.repeats} repeats")
    table("forward", scans, inputs, options.repeats, backward=False)
    if backward:
        table("forward + backward", scans, inputs, options.repeats, backward=True)
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
        "z": torch.randn(batch, length, channels).mT,
        "delta_bias": torch.randn(channels) - 4,
    }
    return {name: x.requires_grad_() for name, x in inputs.items()}


def with_backend(name: str) -> Scan:
    return lambda **inputs: selective_scan(**inputs, delta_softplus=True, backend=name)


def transformers_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **others: Tensor) -> Tensor:
    y: Tensor = mamba_selective_scan(u, delta, A, B, C, delta_softplus=True, **others)
    return y


def run(scan: Scan, inputs: dict[str, Tensor], backward: bool) -> list[Tensor]:
    """y, and the gradient of every input."""
    if not backward:
        with torch.no_grad():
            return [scan(**inputs)]
    y = scan(**inputs)
    return [y, *torch.autograd.grad(y.sum(), list(inputs.values()))]


def largest_error(got: list[Tensor], expected: list[Tensor]) -> float:
    """Relative to the largest value of each tensor; not-a-number counts as infinite."""
    errors = [float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in zip(got, expected, strict=True)]
    return max(error if error == error else float("inf") for error in errors)


def table(title: str, scans: dict[str, Scan], inputs: dict[str, Tensor], repeats: int, backward: bool) -> None:
    """Median wall-clock milliseconds, and how many times faster than the reference."""
    times_s: dict[str, list[float]] = {name: [] for name in scans}
    for _ in range(repeats):
        for name, scan in scans.items():
            start = time.perf_counter()
            run(scan, inputs, backward)
            times_s[name].append(time.perf_counter() - start)
    medians_s = {name: statistics.median(times) for name, times in times_s.items()}
    print(f"\n{title:20s}{'ms':>10s}{'reference / it':>18s}")
    for name, median_s in sorted(medians_s.items(), key=lambda item: item[1]):
        print(f"{name:20s}{median_s * 1e3:10.1f}{medians_s['reference'] / median_s:17.1f}x")


if __name__ == "__main__":
    sys.exit(main())
