"""What the Triton backends of every op ask first: is it there, and does it interpret its kernels."""

from __future__ import annotations

import functools
import importlib
import os

from bimba.types import first_line


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter; Triton reads the variable when kernels are first imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


@functools.cache
def import_error() -> str | None:
    """Why Triton cannot be imported and what to do, or None when it can."""
    try:
        importlib.import_module("triton")
    except ModuleNotFoundError as error:
        return f"Triton or a part of it is not installed ({error}); pip install triton (PyTorch for CUDA brings it)"
    except Exception as error:  # noqa: BLE001  # built for another system or Python: whatever it raises, we go on without
        return (
            f"Triton cannot be imported ({first_line(error)}); install it anew together with the PyTorch that it "
            "belongs to: pip install --force-reinstall torch triton"
        )
    return None
