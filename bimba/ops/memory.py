"""Memory for what a CPU kernel writes once: in huge pages, where the system has them, and used again.

Memory that is new comes with a page fault per page. Of 4 KiB each, in a virtual machine, these take longer than the
scan that fills them; of 2 MiB, a twentieth of that, as long as the system has such pages. Where others have cut its
memory into small pieces, it moves them about to make room, for 4 ms a page. So what a step of training no longer uses
is kept for the next one, which asks for the same again, up to ``MOST_KEPT`` bytes. Without training, what takes few
pages lies in torch's own memory, which is not new after the first call.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import mmap
import threading
import weakref
from typing import Any

import torch
from torch import Tensor

MOST_KEPT = 2**27  # bytes
_HUGE = 2**21  # bytes of a huge page: what is smaller lies in torch's own memory
_KEPT_BY_TORCH = 2**24  # bytes: what is smaller, the C library does not give back when it is freed
_MOST_WASTED = 0.25  # of a tensor's bytes, for the rest of its last huge page, or of the pages that it is given

_kept: list[mmap.mmap] = []  # the newest last
_lock = threading.RLock()  # the garbage collector may give back in the midst of anything


def new(*shape: int, dtype: torch.dtype = torch.float32, keep: bool = False) -> Tensor:
    """A tensor of the CPU that is to be written, as ``torch.empty``.

    Args:
        keep: its memory may be what another one had, and is kept for others. Not without gradients: what is kept idle
            would add to the memory of a streamed sequence, which is to need little.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < (_HUGE if keep else _KEPT_BY_TORCH) or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device="cpu")
    try:
        pages = (keep and _used_before(num_bytes)) or _mapped(num_bytes)
    except (OSError, OverflowError):  # no memory: torch says so, as for any other tensor
        return torch.empty(shape, dtype=dtype, device="cpu")
    if not keep:
        return torch.frombuffer(pages, dtype=dtype, count=math.prod(shape)).view(
            shape
        )  # holds them as long as it lives
    loan = _loan(num_bytes).from_buffer(pages)
    weakref.finalize(loan, _give_back, pages).atexit = False
    return torch.frombuffer(loan, dtype=dtype).view(shape)  # holds the loan


def release() -> None:
    """Gives the system back what is kept."""
    with _lock:
        _kept.clear()


@functools.lru_cache(256)  # sequences come in many lengths, and a type is no small thing
def _loan(num_bytes: int) -> Any:
    """A type of objects that stand for so many bytes of some pages, until a tensor lets go of them."""
    return type("Loan", (ctypes.Array,), {"_type_": ctypes.c_ubyte, "_length_": num_bytes})


def _used_before(num_bytes: int) -> mmap.mmap | None:
    """The smallest of those that are kept that it fits into without wasting much; of several the newest."""
    most = (1 + _MOST_WASTED) * -(-num_bytes // _HUGE) * _HUGE
    with _lock:
        fitting = [i for i in reversed(range(len(_kept))) if num_bytes <= len(_kept[i]) <= most]
        return _kept.pop(min(fitting, key=lambda i: len(_kept[i]))) if fitting else None


def _give_back(pages: mmap.mmap) -> None:
    """Keeps the pages in place of older ones, unless they alone are too many."""
    if len(pages) > MOST_KEPT:
        return
    with _lock:
        _kept.append(pages)
        while sum(map(len, _kept)) > MOST_KEPT:
            del _kept[0]


def _mapped(num_bytes: int) -> mmap.mmap:
    # A whole number of pages, which the system then places at the border of one.
    in_huge = -(-num_bytes // _HUGE) * _HUGE
    pages = mmap.mmap(-1, in_huge, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # of a system built without: its pages are small
        if in_huge - num_bytes > _MOST_WASTED * num_bytes:  # then what the last huge page would hold lies in small ones
            in_huge -= _HUGE
            pages.madvise(mmap.MADV_NOHUGEPAGE, in_huge, _HUGE)
        pages.madvise(mmap.MADV_HUGEPAGE, 0, in_huge)
    return pages
