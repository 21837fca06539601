"""Short depthwise convolution over the sequence (step [4]): each token sees itself and the W - 1 tokens before it.

Both directions of a layer read x once; the reverse one's taps reach ahead, so that nothing is flipped, padded or
transposed. Only x is kept for the backward pass.
"""

from __future__ import annotations

from torch import Tensor

from bimba.ops.causal_conv1d.inputs import check_inputs
from bimba.ops.causal_conv1d.op import REGISTRY, conv_op
from bimba.types import BimbaError

__all__ = ["REGISTRY", "bidirectional_conv1d", "causal_conv1d"]


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """y[t] = activation(bias + sum_w weight[w] x[t - (W - 1) + w]); with ``reverse`` the taps reach ahead instead.

    Args:
        x: (B, D, L), any strides; fastest when it is (B, L, D) in memory, and y is laid out that way.
        weight: (D, W); the last tap belongs to the token itself.
        bias: (D,).
        activation: "silu" or None.
        reverse: equals flipping x, convolving and flipping back, without the flips.
        backend: "auto", or the name of a file in this folder.

    Returns:
        (B, D, L) in x's dtype; half types are summed in float32.
    """
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[1]:
        raise BimbaError(
            f"causal_conv1d: expected x (B, D, L) and weight (D, W), "
            f"received {tuple(x.shape)} and {tuple(weight.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise BimbaError(f"causal_conv1d: expected bias ({weight.shape[0]},), received {tuple(bias.shape)}.")
    if activation not in (None, "silu"):
        raise BimbaError(f'causal_conv1d: activation must be "silu" or None, received {activation!r}.')
    check_inputs("causal_conv1d", x, weight, bias)
    bias = None if bias is None else bias.unsqueeze(0)
    y: Tensor = conv_op(x.transpose(1, 2), weight.unsqueeze(0), bias, activation == "silu", reverse, backend)
    return y.squeeze(0).transpose(1, 2)


def bidirectional_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool = False, backend: str = "auto"
) -> Tensor:
    """The convolutions of R directions of one x: direction 0 is causal, direction 1 anti-causal.

    Args:
        x: (B, L, D), any strides; fastest with contiguous rows.
        weight: (R, D, W), R 1 or 2; the last tap belongs to the token itself in either direction.
        bias: (R, D).
        silu: apply it to the sum.
        reverse: direction 0 is the anti-causal one, direction 1 the causal one.
        backend: "auto", or the name of a file in this folder.

    Returns:
        (R, B, L, D), contiguous, in x's dtype; half types are summed in float32.
    """
    if x.dim() != 3 or weight.dim() != 3 or weight.shape[1] != x.shape[2] or weight.shape[0] not in (1, 2):
        raise BimbaError(
            f"bidirectional_conv1d: expected x (B, L, D) and weight (R, D, W) with R 1 or 2, "
            f"received {tuple(x.shape)} and {tuple(weight.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:2]:
        raise BimbaError(
            f"bidirectional_conv1d: expected bias {tuple(weight.shape[:2])}, received {tuple(bias.shape)}."
        )
    check_inputs("bidirectional_conv1d", x, weight, bias)
    y: Tensor = conv_op(x, weight, bias, silu, reverse, backend)
    return y
