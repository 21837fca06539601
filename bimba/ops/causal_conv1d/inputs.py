"""What every backend of the convolution shares: the call, the checks, the dtype of the sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bimba.types import BimbaError


@dataclass(frozen=True)
class Conv:
    """One call of the convolution as backends take it: a row of channels per token, R directions that read one x.

    Attributes:
        x: (B, L, D), with stride 1 on its last axis and any other strides.
        weight: (R, D, W), any strides; the last tap belongs to the token itself.
        bias: (R, D), any strides.
        silu: apply it to the sum.
        reverse: the taps of direction 0 reach ahead; a direction 1 goes the other way than direction 0.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    silu: bool
    reverse: bool

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """R, B, L, D, W."""
        return (self.weight.shape[0], *self.x.shape, self.weight.shape[2])

    @property
    def dtype(self) -> torch.dtype:
        """That of the sums: float32, or float64 when an input is."""
        tensors = (self.x, self.weight, self.bias)
        wide = any(x is not None and x.dtype == torch.float64 for x in tensors)
        return torch.float64 if wide else torch.float32

    def is_reverse(self, direction: int) -> bool:
        return self.reverse != (direction == 1)


def check_inputs(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise BimbaError when dtypes or devices do not fit each other, or a weight has no tap."""
    for label, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise BimbaError(f"{name}: {label} must be a real floating-point tensor, received {tensor.dtype}.")
        if tensor.device != x.device:
            raise BimbaError(f"{name}: {label} is on {tensor.device}, x on {x.device}; put both on one device.")
    if weight.shape[-1] == 0:
        raise BimbaError(f"{name}: weight must have at least one tap, received shape {tuple(weight.shape)}.")
