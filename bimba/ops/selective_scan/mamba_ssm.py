"""The CUDA kernels of the package mamba_ssm, to cross-check: full outputs, one direction a call, copies flipped by us.

Its kernels take a slow path when the length is no multiple of 2,048, which a video's never is. Zeros are put in front
of the sequence to fill it up: with u = 0 and B = 0 the state stays zero, and nothing else changes.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from bimba.ops.backend import Backend
from bimba.ops.selective_scan.inputs import Scan
from bimba.types import BimbaError, first_line

_MULTIPLE = 2048  # positions that the kernels take at a time
_TOOLS = "pip install torch wheel ninja && pip install --no-build-isolation"
_INSTALL = f'install it with: {_TOOLS} "mamba-ssm>=2.3.1"'
_REBUILD = (  # pip would keep what is installed, and what it built before
    f'build it anew for this torch with: {_TOOLS} --force-reinstall --no-deps --no-cache-dir "mamba-ssm>=2.3.1"'
)


@functools.cache
def _package() -> Any:
    """mamba_ssm's autograd function around its kernels, or why there is none."""
    try:
        from mamba_ssm.ops.selective_scan_interface import SelectiveScanFn
    except ModuleNotFoundError as error:
        return f"the package mamba-ssm or a part of it is not installed ({error}); {_INSTALL}"
    except Exception as error:  # noqa: BLE001  # built against another torch or CUDA: whatever it raises, we go on without
        return f"mamba-ssm cannot be loaded beside torch {torch.__version__} ({first_line(error)}); {_REBUILD}"
    return SelectiveScanFn


class _Context:
    """Takes the place of autograd's context: the function's two halves are called inside one of our operators."""

    saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors


def forward(scan: Scan, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Nothing is saved: the kernels' own states are made again in the backward pass."""
    outputs, lasts = [], []
    for number in range(scan.u.shape[0]):
        one = _Direction(scan, number)
        y, last = one.run(_Context())
        outputs.append(one.read(y))
        lasts.append(last.float())
    y, last = torch.stack(outputs), torch.stack(lasts)
    return y, last, last.new_empty(0)


def backward(scan: Scan, saved: Tensor, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
    if bool(dlast.any()):
        raise BimbaError(
            "selective_scan: the backend mamba_ssm has no gradient of the last state, which is needed here; use "
            "another backend."
        )
    per_direction = []
    for number in range(scan.u.shape[0]):
        one = _Direction(scan, number)
        context = _Context()
        one.run(context)
        du, ddelta, dA, dB, dC, dD, _, dbias, *_ = _package().backward(context, one.write(dy[number]))
        per_direction.append(
            (one.unpad(du), one.unpad(ddelta), dA, one.unpad(dB), one.select(one.unpad(dC)), dD, dbias)
        )
    inputs = (scan.u, scan.delta, scan.A, scan.B, scan.C, scan.D, scan.delta_bias)
    grads = zip(*per_direction, strict=True)
    stacked = (None if x is None else torch.stack(list(grad)) for x, grad in zip(inputs, grads, strict=True))
    return (*stacked, None)


class _Direction:
    """One direction as the kernels take it: (B, D, L) contiguous, in the order of the scan, padded in front."""

    def __init__(self, scan: Scan, number: int) -> None:
        self.reverse = scan.is_reverse(number)
        self.index = scan.query_index
        self.length = scan.u.shape[2]
        self.padding = -self.length % _MULTIPLE
        self.dtype = dtype = scan.u.dtype
        C = scan.C[number].to(dtype)
        if self.index is not None:
            C = C.new_zeros(C.shape[0], self.length, C.shape[2]).index_copy_(1, self.index, C)
        A, D, bias = (None if x is None else x[number].float().contiguous() for x in (scan.A, scan.D, scan.delta_bias))
        u, delta, B = (self.pad(x[number].to(dtype)) for x in (scan.u, scan.delta, scan.B))
        self.inputs = (u, delta, A, B, self.pad(C), D, None, bias, scan.delta_softplus)

    def run(self, context: _Context) -> tuple[Tensor, Tensor]:
        """y (B, D, padded L) and the last state (B, D, N)."""
        y, last = _package().forward(context, *self.inputs, True)
        return y, last

    def pad(self, x: Tensor) -> Tensor:
        """(B, L, ...) -> (B, ..., padded L), contiguous, zeros in front."""
        columns = x.mT.flip(-1) if self.reverse else x.mT
        return torch.nn.functional.pad(columns, (self.padding, 0)).contiguous()

    def unpad(self, x: Tensor) -> Tensor:
        """(B, ..., padded L) -> (B, L, ...)."""
        columns = x[..., self.padding :]
        return (columns.flip(-1) if self.reverse else columns).mT

    def select(self, x: Tensor) -> Tensor:
        """(B, L, ...) -> (B, Q, ...)."""
        return x if self.index is None else x.index_select(1, self.index)

    def read(self, y: Tensor) -> Tensor:
        """What the kernels return -> (B, Q, D) float32."""
        return self.select(self.unpad(y)).float().contiguous()

    def write(self, dy: Tensor) -> Tensor:
        """(B, Q, D) -> the gradient of what the kernels return."""
        if self.index is not None:
            dy = dy.new_zeros(dy.shape[0], self.length, dy.shape[2]).index_copy_(1, self.index, dy)
        return self.pad(dy.to(self.dtype))


def _unavailable() -> str | None:
    if not torch.cuda.is_available():
        return "it needs an NVIDIA GPU"
    package = _package()
    return package if isinstance(package, str) else None


def _refuses(scan: Scan) -> str | None:
    if scan.u.device.type != "cuda":
        return f"it runs on a GPU, the inputs are on {scan.u.device}"
    if scan.dtype == torch.float64:
        return "it computes in float32, an input is float64"
    if scan.initial_state is not None:
        return (
            "its kernels start from a state of zeros, and one was given; a streamed layer does so: set chunk_tokens=0, "
            "or take another backend"
        )
    if scan.shape[4] > 256:
        return f"its kernels take at most 256 states, received {scan.shape[4]}"
    if 0 in scan.u.shape:
        return f"its kernels take no empty inputs, received u {tuple(scan.u.shape)}"
    return None


BACKEND = Backend(forward=forward, backward=backward, priority=25, unavailable=_unavailable, refuses=_refuses)
