"""The layer at the 7B model's size on a GPU, for ``compressor.py --gpu``: ours against the original's way.

The original's way runs on the CUDA packages mamba_ssm and causal_conv1d where they are installed, else on this
package's scan of every position and PyTorch's convolution; the table says which. "host buffer" is the original as it
is: in every forward pass it makes the sequence's buffer of zeros in float32 on the host and moves it to the GPU. "every
position" is our layer, computed everywhere: what reading at the queries alone saves, while the original's way differs
in its layout, too (see ``compressor.py``). Before any speed is printed all must agree on 2 frames in float32, with
streaming in four pieces and with all gradients, and each backend's scan with ``chunked``'s, in both dtypes. All share
one set of parameters, so that a peak counts them once.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from layer import GRID, EveryPosition, Layer, Ours, make, quarter, run
from measure import agree
from original import Convolution, FullScan, OriginalsWay, convolve_and_silu, our_scan
from torch import Tensor

from bimba.model.compressor import MambaCompressor
from bimba.model.queries import pool_queries
from bimba.ops.selective_scan import REGISTRY, scan_directions
from bimba.ops.selective_scan.inputs import Scan

COMPARED_FRAMES = 2
TOLERANCE = 1e-3  # of the largest value, float32
SCAN_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-2}  # a backend may round its outputs to bfloat16


def main(frames_s: list[int], hidden_size: int, repeats: int, device: str = "cuda") -> int:
    if device == "cuda" and not torch.cuda.is_available():
        print("--gpu: torch finds no GPU here; leave --gpu out to measure on the CPU.")
        return 1
    name = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"torch {torch.__version__}, {name}, hidden size {hidden_size}, bfloat16, median of {repeats}")
    print(f"the original's way runs on: {original_scan(device)[1]}, {original_convolution(device)[1]}")
    print_rates(device, repeats)
    if not layers_agree(make(hidden_size, torch.float32, device), device):
        return 1
    compressor = make(hidden_size, torch.bfloat16, device)
    if not scans_agree(compressor, device):
        return 1
    candidates = layers(compressor, device)
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
        print_scans(compressor, frames, device, repeats)
    return 0


def layers(compressor: MambaCompressor, device: str, chunk_tokens: int = 4096) -> dict[str, Layer]:
    scan, convolve = original_scan(device)[0], original_convolution(device)[0]
    return {
        "query-only": Ours(compressor),
        "streamed": Ours(compressor, chunk_tokens),
        "every position": EveryPosition(compressor),
        "original's way": OriginalsWay(compressor, scan, convolve),
        "original's, host buffer": OriginalsWay(compressor, scan, convolve, host_buffer=True),
    }


def layers_agree(compressor: MambaCompressor, device: str) -> bool:
    """Whether all compute the same, gradients included; says so if not."""
    tokens = torch.randn(1, COMPARED_FRAMES, GRID, GRID, compressor.hidden_size, device=device)
    queries = pool_queries(tokens).flatten(2, 3)
    candidates = layers(compressor, device, quarter(COMPARED_FRAMES))
    calls = {name: partial(run, layer, tokens, queries, backward=True) for name, layer in candidates.items()}
    return agree(calls, calls.pop("query-only")(), "query-only", TOLERANCE)


def scans_agree(compressor: MambaCompressor, device: str) -> bool:
    """Whether the scan is the same with every backend that runs here; says so if not."""
    for dtype, tolerance in SCAN_TOLERANCE.items():
        calls, _ = scans(compressor, COMPARED_FRAMES, device, dtype)
        named = {f"the scan of {name} in {dtype}": call for name, call in calls.items()}
        if not agree(named, calls["chunked"](), "that of chunked", tolerance):
            return False
    return True


def original_scan(device: str) -> tuple[FullScan, str]:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception as error:  # noqa: BLE001  # built against another torch or CUDA: whatever it raises, we go on without
        return our_scan, f"this package's scan of every position ({reason('mamba_ssm', error)})"
    if device != "cuda":
        return our_scan, "this package's scan of every position"
    return partial(_softplus_scan, selective_scan_fn), "mamba_ssm's selective_scan_fn"


def _softplus_scan(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return function(*inputs, delta_softplus=True)


def original_convolution(device: str) -> tuple[Convolution, str]:
    try:
        from causal_conv1d import causal_conv1d_fn
    except Exception as error:  # noqa: BLE001  # built against another torch or CUDA: whatever it raises, we go on without
        return convolve_and_silu, f"PyTorch's conv1d ({reason('causal_conv1d', error)})"
    if device != "cuda":
        return convolve_and_silu, "PyTorch's conv1d"
    return partial(causal_conv1d_fn, activation="silu"), "causal_conv1d_fn"


def reason(package: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{package} is not installed: {error}"
    return f"{package} cannot be loaded: {(str(error).strip() or type(error).__name__).splitlines()[0]}"


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


def print_scans(compressor: MambaCompressor, frames: int, device: str, repeats: int) -> None:
    calls, refusals = scans(compressor, frames, device, torch.bfloat16)
    for name, call in calls.items():
        if REGISTRY.backends[name].priority >= 20 or device == "cpu":  # chunked is a loop of Python
            print(f"scan, both directions, {name}: {measure(call, repeats, device)[0] * 1e3:.2f} ms")
    for name, why in refusals.items():
        print(f"scan, both directions, {name}: {why}")


def scans(
    compressor: MambaCompressor, frames: int, device: str, dtype: torch.dtype
) -> tuple[dict[str, Callable[[], list[Tensor]]], dict[str, str]]:
    """Backend -> the scan alone, both directions, on the same inputs; and of other backends why they cannot run."""
    mixer = compressor.layers[0].mixer
    num_queries = frames * ((GRID + 1) // 2) ** 2
    length = frames * GRID**2 + num_queries
    index = compressor.query_index(frames * GRID**2, num_queries).to(device)
    torch.manual_seed(frames)

    def rows(columns: int, count: int = length) -> Tensor:
        return torch.randn(2, 1, count, columns, device=device, dtype=dtype)

    parameters = mixer.directions((0, 1))
    u, delta, B, C = rows(mixer.d_inner), rows(mixer.d_inner), rows(mixer.d_state), rows(mixer.d_state, num_queries)
    inputs = (u, delta, parameters.A, B, C, parameters.D, parameters.dt_bias)

    def scan(backend: str) -> list[Tensor]:
        with torch.no_grad():
            return list(scan_directions(*inputs, delta_softplus=True, query_index=index, backend=backend))

    call = Scan(*inputs, initial_state=None, query_index=index, delta_softplus=True, reverse=False)
    names = [name for name, backend in REGISTRY.backends.items() if backend.priority > 0]  # not the definition
    refusals = {name: why for name in names if (why := REGISTRY.refusal(name, call)) is not None}
    return {name: partial(scan, name) for name in names if name not in refusals}, refusals


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
