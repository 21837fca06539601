"""The scan as Triton kernels (``gpu/``): both directions in one launch, states in registers, y stored at queries only.

The forward pass keeps the state every 64 steps, if gradients are wanted; the backward pass recomputes the rest. Nothing
of size (R, B, L, D, N) exists. dB and dC are summed over 32 channels in a program before it adds them to memory; these
additions come in any order, so that their last bits differ from run to run. All other results are reproducible.

Without a GPU, TRITON_INTERPRET=1 runs the kernels on the CPU, operation by operation: for tests, slowly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bimba.ops.backend import Backend
from bimba.ops.selective_scan.gpu.plan import saved_shape
from bimba.ops.selective_scan.inputs import Scan
from bimba.ops.triton_support import import_error, interpreted


def forward(scan: Scan, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (R, B, Q, D), the last state (R, B, D, N), and the states saved for the backward pass, float32."""
    from bimba.ops.selective_scan.gpu import launch

    return launch.forward(scan, save)


def backward(scan: Scan, saved: Tensor, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta (in their dtypes), A, B, C, D, delta_bias, initial_state (float32)."""
    from bimba.ops.selective_scan.gpu import launch

    return launch.backward(scan, saved, dy, dlast)


def _unavailable() -> str | None:
    if import_error() is not None:
        return import_error()
    if not torch.cuda.is_available() and not interpreted():
        return "there is no CUDA device here; to test the kernels on the CPU set TRITON_INTERPRET=1"
    return None


def _refuses(scan: Scan) -> str | None:
    if scan.u.device.type != "cuda" and not (interpreted() and scan.u.device.type == "cpu"):
        return f"it runs on CUDA devices, the inputs are on {scan.u.device}"
    if scan.dtype == torch.float64:
        return "it computes in float32, an input is float64"
    if max(scan.u.shape) >= 2**31:
        return f"it counts up to 2^31 positions and channels, u has shape {tuple(scan.u.shape)}"
    return None


BACKEND = Backend(
    forward=forward,
    backward=backward,
    saved_shape=saved_shape,
    priority=-1 if interpreted() else 30,  # the interpreter is for tests: "auto" never comes to it
    unavailable=_unavailable,
    refuses=_refuses,
)
