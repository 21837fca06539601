"""The convolution as one node of a graph: what torch.compile and torch.export see, whichever backend runs.

The backend is chosen inside the node, when it runs: on the machine and for the tensors that are there then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bimba.ops.backend import Registry
from bimba.ops.causal_conv1d.inputs import Conv

REGISTRY = Registry(__package__, variable="BIMBA_CONV_BACKEND")


@torch.library.custom_op("bimba::causal_conv1d", mutates_args=())
def conv_op(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool, backend: str) -> Tensor:
    """x (B, L, D), weight (R, D, W), bias (R, D) -> (R, B, L, D), contiguous, in x's dtype."""
    conv = Conv(_rows(x), weight, bias, silu, reverse)
    with torch.autocast(x.device.type, enabled=False):
        (y,) = REGISTRY.choose(backend, conv).forward(conv)
    return y


@conv_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool, backend: str) -> Tensor:
    return x.new_empty(weight.shape[0], *x.shape)


@torch.library.custom_op("bimba::causal_conv1d_backward", mutates_args=())
def conv_backward_op(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias, contiguous, in their dtypes; the last of no element without a bias."""
    conv = Conv(_rows(x), weight, bias, silu, reverse)
    with torch.autocast(x.device.type, enabled=False):
        dx, dweight, dbias = REGISTRY.choose(backend, conv).backward(conv, dy.contiguous())
    dbias = x.new_empty(0) if bias is None else dbias.to(bias.dtype)
    return dx.to(x.dtype), dweight.to(weight.dtype), dbias


@conv_backward_op.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    dbias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.options = inputs
    ctx.save_for_backward(x, weight, bias)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = conv_backward_op(dy, x, weight, bias, *ctx.options)
    return dx, dweight, None if bias is None else dbias, None, None, None


conv_op.register_autograd(_gradients, setup_context=_keep_inputs)


def _rows(x: Tensor) -> Tensor:
    """x with stride 1 on its last axis: no copy of what has it already."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()
