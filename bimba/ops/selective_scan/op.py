"""The scan as PyTorch sees it: two custom operators, so that torch.compile and torch.export meet one node each.

Which backend computes is decided inside, from devices, dtypes and shapes, so that tracing decides as running does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bimba.ops.backend import Backend, Registry
from bimba.ops.selective_scan.inputs import Scan, check_query_index

REGISTRY = Registry(__package__, variable="BIMBA_SCAN_BACKEND")


@torch.library.custom_op("bimba::selective_scan", mutates_args=())
def run(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    query_index: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """:class:`Scan`'s inputs -> y (R, B, Q, D), the last state (R, B, D, N), and what the backward pass needs."""
    if query_index is not None:
        check_query_index(query_index, u.shape[2])
    scan, chosen = _choose(
        (u, delta, A, B, C, D, delta_bias, initial_state, query_index), delta_softplus, reverse, backend
    )
    with torch.autocast(u.device.type, enabled=False):
        y, last_state, saved = chosen.forward(scan, save)
    return y, last_state, saved


@run.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, delta_softplus, reverse, backend, save = inputs
    scan, chosen = _choose(tensors, delta_softplus, reverse, backend)
    R, B, _, D, N, Q = scan.shape
    y = scan.u.new_empty(R, B, Q, D, dtype=scan.dtype)
    return y, y.new_empty(R, B, D, N), y.new_empty(chosen.saved_shape(scan) if save else (0,))


@torch.library.custom_op("bimba::selective_scan_backward", mutates_args=())
def run_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    query_index: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    backend: str,
    saved: Tensor,
    dy: Tensor,
    dlast: Tensor,
) -> list[Tensor]:
    """The gradients of those of the eight first inputs that are given, in their order and dtypes."""
    tensors = (u, delta, A, B, C, D, delta_bias, initial_state, query_index)
    scan, chosen = _choose(tensors, delta_softplus, reverse, backend)
    with torch.autocast(u.device.type, enabled=False):
        grads = chosen.backward(scan, saved, dy.to(scan.dtype).contiguous(), dlast.contiguous())
    pairs = zip(grads, tensors[:8], strict=True)
    return [grad.to(x.dtype).contiguous() for grad, x in pairs if grad is not None and x is not None]


@run_backward.register_fake
def _(*inputs: Any) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:8] if x is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, delta_softplus, reverse, backend, _save = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.options = (delta_softplus, reverse, backend)


def _backward(ctx: Any, dy: Tensor, dlast: Tensor, dsaved: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, saved = ctx.saved_tensors
    given = iter(run_backward(*tensors, *ctx.options, saved, dy, dlast))
    grads = [None if x is None else next(given) for x in tensors[:8]]
    return (*grads, None, None, None, None, None)


run.register_autograd(_backward, setup_context=_setup_context)


def _choose(
    tensors: Sequence[Tensor | None], delta_softplus: bool, reverse: bool, backend: str
) -> tuple[Scan, Backend]:
    u, delta, A, B, C, D, delta_bias, initial_state, query_index = tensors
    u, delta, B, C = (_rows(x) for x in (u, delta, B, C))
    scan = Scan(u, delta, A, B, C, D, delta_bias, initial_state, query_index, delta_softplus, reverse)  # type: ignore[arg-type]
    return scan, REGISTRY.choose(backend, scan)


def _rows(x: Tensor | None) -> Tensor | None:
    """With neighbours in memory on the last axis; no copy of what is laid out so already."""
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()
