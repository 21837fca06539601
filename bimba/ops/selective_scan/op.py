"""The scan as PyTorch sees it: two custom operators, so that torch.compile and torch.export meet one node each.

Which backend computes is decided inside, from devices, dtypes and shapes alone: a graph is traced without values, and
how much the backward pass needs saved depends on the backend. Its name is kept for the backward pass.

A backend of the scan::

    forward(scan, save) -> y (R, B, Q, D), last state (R, B, D, N), saved (saved_shape(scan), or (0,) if not save)
    backward(scan, saved, dy, dlast) -> gradients of Scan's first eight tensors, None for those that are None
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bimba.ops.backend import Registry
from bimba.ops.selective_scan.inputs import Scan, check_query_index, check_scan, rows
from bimba.types import BimbaError

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
    scan = _scan((u, delta, A, B, C, D, delta_bias, initial_state, query_index), delta_softplus, reverse)
    if query_index is not None:
        check_query_index(query_index, u.shape[2])
    chosen = REGISTRY.choose(backend, scan)
    with torch.autocast(u.device.type, enabled=False):
        y, last_state, saved = chosen.forward(scan, save)
    return y, last_state, saved


@run.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, delta_softplus, reverse, backend, save = inputs
    scan = _scan(tensors, delta_softplus, reverse)
    chosen = REGISTRY.choose(backend, scan)
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
    scan = _scan(tensors, delta_softplus, reverse)
    chosen = REGISTRY.choose(backend, scan)
    needed = chosen.saved_shape(scan)
    with torch.autocast(u.device.type, enabled=False):
        if saved.numel() == 0 and needed != (0,):  # of a graph that was made without gradients
            saved = chosen.forward(scan, True)[2]
        if tuple(saved.shape) != needed:
            raise BimbaError(
                f"selective_scan: backend {backend!r} needs saved states of shape {needed} for its backward pass, "
                f"received {tuple(saved.shape)}; run forward and backward pass with the same backend."
            )
        grads = chosen.backward(scan, saved, dy.to(scan.dtype).contiguous(), dlast.contiguous())
    pairs = zip(grads, tensors[:8], strict=True)
    return [grad.to(x.dtype).contiguous() for grad, x in pairs if grad is not None and x is not None]


@run_backward.register_fake
def _(*inputs: Any) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:8] if x is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, delta_softplus, reverse, backend, _save = inputs
    ctx.save_for_backward(*tensors, output[2])
    # By its name: what "auto" takes may have changed when the backward pass comes.
    name = REGISTRY.name_of(backend, Scan(*tensors, delta_softplus, reverse))  # type: ignore[call-arg]
    ctx.options = (delta_softplus, reverse, name)


def _backward(ctx: Any, dy: Tensor, dlast: Tensor, dsaved: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, saved = ctx.saved_tensors
    given = iter(run_backward(*tensors, *ctx.options, saved, dy, dlast))
    grads = [None if x is None else next(given) for x in tensors[:8]]
    return (*grads, None, None, None, None, None)


run.register_autograd(_backward, setup_context=_setup_context)


def _scan(tensors: Sequence[Any], delta_softplus: bool, reverse: bool) -> Scan:
    """The inputs checked, with neighbours in memory on the last axis, and the initial state in the state's dtype."""
    scan = Scan(*tensors, delta_softplus, reverse)  # type: ignore[call-arg]
    check_scan(scan)
    initial = scan.initial_state
    return dataclasses.replace(
        scan,
        u=rows(scan.u),
        delta=rows(scan.delta),
        B=rows(scan.B),
        C=rows(scan.C),
        initial_state=None if initial is None else initial.to(scan.dtype),
    )
