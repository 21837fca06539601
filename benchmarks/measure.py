"""What the benchmarks share: clocks, memory, the floors that the machine itself sets, measured in the same run, and the
comparison of results without which no speed is printed."""

from __future__ import annotations

import ctypes
import gc
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bimba.ops import memory
from bimba.ops.extension import build
from bimba.ops.selective_scan import cpp

SLOW_S = 5.0
TURN_S, MOST_CALLS_IN_A_TURN = 0.1, 5
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def header() -> str:
    return f"torch {torch.__version__}, {processor()}, {torch.get_num_threads()} thread(s)"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def milliseconds(time_s: float) -> str:
    """Three digits, and those in front of the point."""
    ms = time_s * 1e3
    decimals = max(0, 2 - math.floor(math.log10(ms))) if 0 < ms < math.inf else 0
    return f"{ms:.{decimals}f}"


def agree(calls: dict[str, Callable[[], list[Tensor]]], expected: list[Tensor], whose: str, tolerance: float) -> bool:
    """Whether each call gives what is expected; says so if not."""
    for name, call in calls.items():
        error = largest_error(call(), expected)
        if error > tolerance:
            print(f"{name} differs from {whose} by {error:.1e} (limit {tolerance:.0e}): no speed is printed.")
            return False
    return True


def largest_error(got: list[Tensor], expected: list[Tensor]) -> float:
    """Relative to the largest value of each tensor; not-a-number counts as infinite."""
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True)]
    return max(math.inf if math.isnan(error) else error for error in errors)


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


def median_seconds(
    runs: dict[str, Callable[[], object]], repeats: int, known_s: dict[str, float] | None = None
) -> dict[str, float]:
    """Of each, taking turns, after one call that does not count unless it takes so long that it is the only one.

    What is short is called several times in its turn: a single call of some milliseconds would be timed with caches and
    page tables as the one before left them, which may have been through a gigabyte.

    ``known_s``: what a call took earlier; what was slow then is not called again.
    """
    slow_s = {name: time_s for name, time_s in (known_s or {}).items() if time_s > SLOW_S}
    first_s = {name: slow_s[name] if name in slow_s else seconds(run) for name, run in runs.items()}
    times_s: dict[str, list[float]] = {name: [time_s] if time_s > SLOW_S else [] for name, time_s in first_s.items()}
    for _ in range(repeats):
        for name, run in runs.items():
            if first_s[name] <= SLOW_S:
                times_s[name] += [seconds(run) for _ in range(_calls_in_a_turn(first_s[name]))]
    return {name: statistics.median(times) for name, times in times_s.items()}


def _calls_in_a_turn(time_s: float) -> int:
    return max(1, min(MOST_CALLS_IN_A_TURN, round(TURN_S / time_s))) if time_s > 0 else MOST_CALLS_IN_A_TURN


def extra_memory_mib(run: Callable[[], object]) -> tuple[float, float]:
    """How far the process grows during one call, in MiB, and the seconds of that call.

    glibc lets tensors below 32 MiB lie in its heap, where what outlives its neighbours keeps their memory too, as much
    as the order of calls has it. With MALLOC_MMAP_THRESHOLD_=65536 in the environment it does not; times then suffer.
    """
    gc.collect()
    memory.release()  # memory that was freed counts as not there
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _memory_kib("VmRSS")
    time_s = seconds(run)
    return (_memory_kib("VmHWM") - before) / 1024, time_s


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
