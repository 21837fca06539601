"""The scan as PyTorch sees it: two custom operators, so that torch.compile and torch.export meet one node each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bimba.ops.ssd import chunked
from bimba.types import BimbaError


@torch.library.custom_op("bimba::ssd", mutates_args=())
def run(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial_state: Tensor | None,
    query_index: Tensor | None,
    reverse: bool,
    chunk_size: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, Q, H, P), the last state (B, H, P, N); with ``save`` the state before each chunk, (chunks, B, H, P, N)."""
    if query_index is not None:
        _check_order(query_index, x.shape[1])
    with torch.autocast(x.device.type, enabled=False):
        return chunked.forward(x, dt, A, B, C, D, initial_state, query_index, reverse, chunk_size, save)


@run.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, dt, A, B, C, _D, _initial_state, _query_index, _reverse, chunk_size, save = inputs
    batch, length, heads, channels = x.shape
    y = x.new_empty(batch, C.shape[1], heads, channels, dtype=chunked.state_dtype(x, dt, A, B, C))
    state = y.new_empty(batch, heads, channels, B.shape[2])
    return y, state, y.new_empty(-(-length // chunk_size) if save else 0, *state.shape)


@torch.library.custom_op("bimba::ssd_backward", mutates_args=())
def run_backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    query_index: Tensor | None,
    reverse: bool,
    chunk_size: int,
    saved: Tensor,
    dy: Tensor,
    dlast: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the first six inputs, in their dtypes, and of the initial state, in its own."""
    with torch.autocast(x.device.type, enabled=False):
        *grads, dinitial = chunked.backward(x, dt, A, B, C, D, query_index, reverse, chunk_size, saved, dy, dlast)
    dx, ddt, dA, dB, dC, dD = (grad.to(given.dtype) for grad, given in zip(grads, (x, dt, A, B, C, D), strict=True))
    return dx, ddt, dA, dB, dC, dD, dinitial


@run_backward.register_fake
def _(*inputs: Any) -> tuple[Tensor, ...]:
    *of, dlast = (*inputs[:6], inputs[-1])
    return tuple(torch.empty_like(given, memory_format=torch.contiguous_format) for given in (*of, dlast))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, initial_state, query_index, reverse, chunk_size, _save = inputs
    ctx.save_for_backward(*tensors, query_index, output[2])
    ctx.options = (reverse, chunk_size)
    ctx.initial_dtype = None if initial_state is None else initial_state.dtype


def _backward(ctx: Any, dy: Tensor, dlast: Tensor, dsaved: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, query_index, saved = ctx.saved_tensors
    *grads, dinitial = run_backward(*tensors, query_index, *ctx.options, saved, dy, dlast)
    dinitial = None if ctx.initial_dtype is None else dinitial.to(ctx.initial_dtype)
    return (*grads, dinitial, None, None, None, None)


run.register_autograd(_backward, setup_context=_setup_context)


def _check_order(query_index: Tensor, length: int) -> None:
    """Raise BimbaError unless the values are increasing positions of the sequence. Waits once for a GPU's answer."""
    values = query_index.tolist()
    if any(a >= b for a, b in zip(values, values[1:], strict=False)) or (
        values and not 0 <= values[0] <= values[-1] < length
    ):
        raise BimbaError(
            f"ssd: query_index must be strictly increasing positions in [0, {length - 1}]; "
            f"received {len(values)} values from {min(values)} to {max(values)}."
        )
