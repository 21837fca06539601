"""Memory for what a CPU kernel writes once: in huge pages, where the system has them.

Memory that is new comes with a page fault per page. Of 4 KiB each, in a virtual machine, these take longer than the
scan that fills them; of 2 MiB, a twentieth of that.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

_HUGE = 2**21  # bytes of a huge page: what is smaller lies in torch's own memory
_MOST_WASTED = 0.25  # of a tensor's bytes, for the rest of its last huge page


def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of the CPU that is to be written, as ``torch.empty``."""
    count = math.prod(shape)
    num_bytes = count * dtype.itemsize
    if num_bytes < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device="cpu")
    # A whole number of pages, which the system then places at the border of one.
    in_huge = -(-num_bytes // _HUGE) * _HUGE
    try:
        pages = mmap.mmap(-1, in_huge, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):  # no memory: torch says so, as for any other tensor
        return torch.empty(shape, dtype=dtype, device="cpu")
    with contextlib.suppress(OSError):  # of a system built without: its pages are small
        if in_huge - num_bytes > _MOST_WASTED * num_bytes:  # then what the last huge page would hold lies in small ones
            in_huge -= _HUGE
            pages.madvise(mmap.MADV_NOHUGEPAGE, in_huge, _HUGE)
        pages.madvise(mmap.MADV_HUGEPAGE, 0, in_huge)
    return torch.frombuffer(pages, dtype=dtype, count=count).view(shape)  # which keeps them as long as it lives
