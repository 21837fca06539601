"""Memory for what a CPU kernel writes once: in huge pages, where the system has them, and used again.

Memory that is new comes with a page fault per page. Of 4 KiB each, in a virtual machine, these take longer than the
scan that fills them; of 2 MiB, a twentieth of that, as long as the system has such pages. Where others have cut its
memory into small pieces, it moves them about to make room, for 4 ms a page. So what is no longer used is kept for the
next call, which mostly asks for the same again: in training up to ``MOST_KEPT`` bytes, otherwise ``MOST_KEPT_IDLE``.
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

MOST_KEPT = 2**27  # bytes, from one step of training to the next
MOST_KEPT_IDLE = 2**24  # bytes, without: it adds to the memory of a streamed sequence, which is to need little
_HUGE = 2**21  # bytes of a huge page: what is smaller lies in torch's own memory
_MOST_WASTED = 0.25  # of a tensor's bytes, for the rest of its last huge page, or of the pages that it is given


class _Kept:
    """Pages that wait for another tensor, the newest last."""

    def __init__(self, most: int) -> None:
        self.most = most  # bytes
        self.pages: list[mmap.mmap] = []
        self._lock = threading.RLock()  # the garbage collector may give back in the midst of anything

    def take(self, num_bytes: int) -> mmap.mmap | None:
        """The smallest that it fits into without wasting much; of several the newest."""
        most = (1 + _MOST_WASTED) * -(-num_bytes // _HUGE) * _HUGE
        with self._lock:
            fitting = [i for i in reversed(range(len(self.pages))) if num_bytes <= len(self.pages[i]) <= most]
            return self.pages.pop(min(fitting, key=lambda i: len(self.pages[i]))) if fitting else None

    def give(self, pages: mmap.mmap) -> None:
        """Keeps them in place of older ones, unless they alone are too many."""
        if len(pages) > self.most:
            return
        with self._lock:
            self.pages.append(pages)
            while sum(map(len, self.pages)) > self.most:
                del self.pages[0]

    def release(self) -> None:
        with self._lock:
            self.pages.clear()


# Apart, so that a validation takes nothing of what training keeps.
_kept = {True: _Kept(MOST_KEPT), False: _Kept(MOST_KEPT_IDLE)}


def new(*shape: int, dtype: torch.dtype = torch.float32, keep: bool = False) -> Tensor:
    """A tensor of the CPU that is to be written, as ``torch.empty``.

    Args:
        keep: it is part of a step of training, which the next one repeats: more of such memory is kept.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device="cpu")
    try:
        pages = _kept[keep].take(num_bytes) or _mapped(num_bytes)
    except (OSError, OverflowError):  # no memory: torch says so, as for any other tensor
        return torch.empty(shape, dtype=dtype, device="cpu")
    loan = _loan(num_bytes).from_buffer(pages)
    weakref.finalize(loan, _kept[keep].give, pages).atexit = False
    return torch.frombuffer(loan, dtype=dtype).view(shape)  # holds the loan


def release() -> None:
    """Gives the system back what is kept."""
    for kept in _kept.values():
        kept.release()


@functools.lru_cache(256)  # sequences come in many lengths, and a type is no small thing
def _loan(num_bytes: int) -> Any:
    """A type of objects that stand for so many bytes of some pages, until a tensor lets go of them."""
    return type("Loan", (ctypes.Array,), {"_type_": ctypes.c_ubyte, "_length_": num_bytes})


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
