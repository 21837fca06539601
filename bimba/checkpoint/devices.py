"""Devices and dtypes by name, with an answer where there is none of that name."""

from __future__ import annotations

import os

import torch

from bimba.types import BimbaError, first_line


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` is the GPU of this process (``LOCAL_RANK``) if there is one, else the CPU.

    Raises:
        BimbaError: no such device here.
    """
    if str(device) == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA raises AssertionError
        why = first_line(error).partition(". ")[0].rstrip(".")  # what follows is for those who build torch
        raise _unusable(device, why) from error
    if found.type == "meta":
        raise _unusable(device, "it has shapes and no numbers")
    return torch.device(device)


def _unusable(device: str | torch.device, why: str) -> BimbaError:
    return BimbaError(
        f"The device {str(device)!r} cannot be used here ({why}); expected auto, cpu, or one that `bimba doctor` "
        "lists, such as cuda:0."
    )


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype from its name; None (the checkpoint's own) stays None.

    Raises:
        BimbaError: no floating-point type, or none of this name.
    """
    if dtype is None:
        return None
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise BimbaError(f"Unknown dtype {str(dtype)!r}; expected float32, bfloat16 or float16.")
    return named
