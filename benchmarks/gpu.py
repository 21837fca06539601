"""The layer at the 7B model's size on a GPU, for ``compressor.py --gpu``: ours against the original's way.

The original's way runs on the CUDA packages mamba_ssm and causal_conv1d where they are installed, else on this
package's scan of every position and PyTorch's convolution; the table says which. "host buffer" is the original as it
is: in every forward pass it makes the sequence's buffer of zeros in float32 on the host and moves it to the GPU. All
must agree in float32, on few frames, or nothing is printed.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from original import Convolution, FullScan, OriginalsWay, convolve_and_silu, our_scan
from torch import Tensor, nn

from bimba.model.compressor import MambaCompressor
from bimba.model.mamba import cast
from bimba.model.queries import pool_queries
from bimba.ops.selective_scan import REGISTRY, scan_directions
from bimba.types import BimbaError

GRID = 27
TOLERANCE = 1e-3  # of the largest value, float32
Layer = Callable[[Tensor, Tensor], Tensor]


def main(frames_s: list[int], hidden_size: int, repeats: int, device: str = "cuda") -> int:
    if device == "cuda" and not torch.cuda.is_available():
        print("--gpu: torch finds no GPU here; leave --gpu out to measure on the CPU.")
        return 1
    scan_name, convolve_name = original_scan(device)[1], original_convolution(device)[1]
    name = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"torch {torch.__version__}, {name}, hidden size {hidden_size}, bfloat16, median of {repeats}")
    print(f"the original's way runs on: {scan_name}, {convolve_name}")
    print_rates(device, repeats)
    if not agree(build(hidden_size, device, torch.float32), hidden_size, device):
        return 1
    candidates = build(hidden_size, device, torch.bfloat16)
    for frames in frames_s:
        tokens = torch.randn(1, frames, GRID, GRID, hidden_size, device=device, dtype=torch.bfloat16)
        queries = pool_queries(tokens).flatten(2, 3)
        print(f"\n{frames} frames{'':14s}{'forward ms':>12s}{'peak GB':>9s}{'fwd+bwd ms':>12s}{'peak GB':>9s}")
        first: dict[bool, float] = {}
        for name, layer in candidates.items():
            cells = []
            for backward in (False, True):
                time_s, peak_gb = measure(partial(run, layer, tokens, queries, backward), repeats, device)
                first.setdefault(backward, time_s)
                cells.append(f"{time_s * 1e3:8.1f} {time_s / first[backward]:3.1f}x{peak_gb:8.1f}")
            print(f"{name:24s}{''.join(cells)}")
        for backend in REGISTRY.backends:
            print_scan(backend, candidates["query-only"], frames, device, repeats)  # type: ignore[arg-type]
    return 0


def build(hidden_size: int, device: str, dtype: torch.dtype) -> dict[str, Layer]:
    def make(chunk_tokens: int) -> MambaCompressor:
        torch.manual_seed(0)
        with torch.device(device):
            compressor = MambaCompressor(hidden_size, chunk_tokens=chunk_tokens)
            nn.init.normal_(compressor.layers[0].mixer.out_proj.weight, std=0.02)
        cast(compressor, dtype)
        return compressor

    whole = make(chunk_tokens=0)
    scan, convolve = original_scan(device)[0], original_convolution(device)[0]
    return {
        "query-only": whole,
        "streamed": make(chunk_tokens=4096),
        "original's way": OriginalsWay(whole, scan, convolve),
        "original's, host buffer": OriginalsWay(whole, scan, convolve, host_buffer=True),
    }


def agree(candidates: dict[str, Layer], hidden_size: int, device: str) -> bool:
    """Whether all compute the same, gradients included; says so if not."""
    tokens = torch.randn(1, 2, GRID, GRID, hidden_size, device=device)
    queries = pool_queries(tokens).flatten(2, 3)
    results = {name: run(layer, tokens, queries, backward=True) for name, layer in candidates.items()}
    expected = results.pop("query-only")
    for name, got in results.items():
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True))
        if not error <= TOLERANCE:
            print(f"{name} differs from query-only by {error:.1e} (limit {TOLERANCE:.0e}): no speed is printed.")
            return False
    return True


def original_scan(device: str) -> tuple[FullScan, str]:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return our_scan, "this package's scan of every position (mamba_ssm is not installed)"
    if device != "cuda":
        return our_scan, "this package's scan of every position"
    return partial(_softplus_scan, selective_scan_fn), "mamba_ssm's selective_scan_fn"


def _softplus_scan(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return function(*inputs, delta_softplus=True)


def original_convolution(device: str) -> tuple[Convolution, str]:
    try:
        from causal_conv1d import causal_conv1d_fn
    except ImportError:
        return convolve_and_silu, "PyTorch's conv1d (causal_conv1d is not installed)"
    if device != "cuda":
        return convolve_and_silu, "PyTorch's conv1d"
    return partial(causal_conv1d_fn, activation="silu"), "causal_conv1d_fn"


def run(layer: Layer, tokens: Tensor, queries: Tensor, backward: bool) -> list[Tensor]:
    """The refined queries, and every gradient."""
    if not backward:
        with torch.no_grad():
            return [layer(tokens, queries)]
    tokens, queries = tokens.detach().requires_grad_(), queries.detach().requires_grad_()
    parameters = list(getattr(layer, "compressor", layer).parameters())
    y = layer(tokens, queries)
    return [y.detach(), *torch.autograd.grad(y, [tokens, queries, *parameters], torch.ones_like(y))]


def measure(call: Callable[[], object], repeats: int, device: str) -> tuple[float, float]:
    """Median seconds, and the peak of memory in GB, tokens and parameters included; nan where there is not enough."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        call()  # compiles kernels
        times_s = []
        for _ in range(repeats):
            _synchronize(device)
            start = time.perf_counter()
            call()
            _synchronize(device)
            times_s.append(time.perf_counter() - start)
    except torch.cuda.OutOfMemoryError:
        return float("nan"), float("nan")
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
    return statistics.median(times_s), peak


def print_rates(device: str, repeats: int) -> None:
    """What the machine can do at best, in this run."""
    size = 8192 if device == "cuda" else 256
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    product_s, _ = measure(lambda: a @ a, repeats, device)
    target = torch.empty_like(a)
    copy_s, _ = measure(lambda: target.copy_(a), repeats, device)
    print(f"matrix products: {2e-12 * size**3 / product_s:.0f} TFLOP/s; copies: {2e-12 * a.nbytes / copy_s:.2f} TB/s")


def print_scan(backend: str, compressor: MambaCompressor, frames: int, device: str, repeats: int) -> None:
    """The scan alone, both directions, with what one backend takes for it."""
    if REGISTRY.backends[backend].priority < 20 and device == "cuda":
        return  # a loop of Python over positions
    mixer = compressor.layers[0].mixer
    num_queries = frames * ((GRID + 1) // 2) ** 2
    length = frames * GRID**2 + num_queries
    index = compressor.query_index(frames * GRID**2, num_queries).to(device)

    def rows(columns: int, count: int = length) -> Tensor:
        return torch.randn(2, 1, count, columns, device=device, dtype=torch.bfloat16)

    parameters = mixer.directions((0, 1))
    u, delta, B, C = rows(mixer.d_inner), rows(mixer.d_inner), rows(mixer.d_state), rows(mixer.d_state, num_queries)

    def scan() -> None:
        with torch.no_grad():
            scan_directions(
                u, delta, parameters.A, B, C, parameters.D, parameters.dt_bias, delta_softplus=True, query_index=index,
                backend=backend,
            )  # fmt: skip

    try:
        time_s, _ = measure(scan, repeats, device)
    except BimbaError as error:
        print(f"scan, both directions, {backend}: {error}")
        return
    print(f"scan, both directions, {backend}: {time_s * 1e3:.1f} ms")


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
