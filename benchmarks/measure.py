"""What the benchmarks share: clocks, memory, and the floors that the machine itself sets, measured in the same run."""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bimba.ops.extension import build
from bimba.ops.selective_scan import cpp

SLOW_S = 5.0
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def header() -> str:
    return f"torch {torch.__version__}, {processor()}, {torch.get_num_threads()} thread(s)"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """From here on memory that is freed stays with the process: page faults are dear, above all in virtual machines,
    and otherwise count against whoever allocates much. Memory can no longer be measured afterwards."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def seconds(run: Callable[[], object]) -> float:
    """Of one call: with one thread of processor time, which others' load leaves alone."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    return clock() - start


def median_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Of each, taking turns, after one call that does not count unless it takes so long that it is the only one."""
    first_s = {name: seconds(run) for name, run in runs.items()}
    times_s: dict[str, list[float]] = {name: [time_s] if time_s > SLOW_S else [] for name, time_s in first_s.items()}
    for _ in range(repeats):
        for name, run in runs.items():
            if first_s[name] <= SLOW_S:
                times_s[name].append(seconds(run))
    return {name: statistics.median(times) for name, times in times_s.items()}


def extra_memory_mib(run: Callable[[], object]) -> float:
    """How far the process grows during one call, in MiB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed counts as not there
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _memory_kib("VmRSS")
    run()
    return (_memory_kib("VmHWM") - before) / 1024


def _memory_kib(line: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0])


def exponentials_s(count: int, repeats: int = 5) -> float:
    """Seconds that ``count`` exponentials take, this package's own, spread over the threads, all in the cache."""
    folder = Path(cpp.__file__).parent / "csrc"
    library = build("bimba_floor", [Path(__file__).parent / "floor.cpp"], [folder / "vec.h"])
    arguments = (ctypes.c_int64(count), ctypes.c_int64(torch.get_num_threads()))
    return statistics.median(seconds(lambda: library.bimba_exponentials(*arguments)) for _ in range(repeats))


def copy_s(num_bytes: int, repeats: int = 5) -> float:
    """Seconds that reading and writing takes, ``num_bytes`` both together, from memory to memory."""
    source = torch.zeros(max(1, num_bytes // 8))
    target = torch.zeros_like(source)
    return statistics.median(seconds(lambda: target.copy_(source)) for _ in range(repeats))


def matrix_product_s(flop: float, dtype: torch.dtype = torch.float32, repeats: int = 5) -> float:
    """Seconds that ``flop`` operations (two a multiply-add) take in a large matrix product."""
    size = 1024
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    torch.mm(a, b)
    one_s = statistics.median(seconds(lambda: torch.mm(a, b)) for _ in range(repeats))
    return one_s * flop / (2 * size**3)
