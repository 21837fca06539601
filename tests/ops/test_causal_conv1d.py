"""The causal convolution against PyTorch's, outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bimba.ops import causal_conv1d
from bimba.types import BimbaError


def padded_conv(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, reverse: bool) -> Tensor:
    x = x.flip(-1) if reverse else x
    y = F.conv1d(F.pad(x, (weight.shape[1] - 1, 0)), weight.unsqueeze(1), bias, groups=x.shape[1])
    y = F.silu(y) if activation == "silu" else y
    return y.flip(-1) if reverse else y


def inputs(batch: int, channels: int, length: int, width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    x = torch.randn(batch, length, channels, dtype=dtype).transpose(1, 2)
    return [x, torch.randn(channels, width, dtype=dtype), torch.randn(channels, dtype=dtype)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize(("length", "width"), [(11, 4), (1, 4), (3, 4), (4, 4), (9, 2), (9, 1)])
def test_equals_padded_convolution(reverse: bool, activation: str | None, length: int, width: int) -> None:
    results = []
    for conv in (causal_conv1d, padded_conv):
        leaves = [x.detach().requires_grad_() for x in inputs(2, 3, length, width)]
        y = conv(*leaves, activation, reverse)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))
        results.append([y, *(x.grad for x in leaves)])
    for got, expected in zip(*results):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_without_bias_and_any_strides(reverse: bool) -> None:
    x, weight, _ = inputs(2, 3, 8, 4)
    expected = padded_conv(x, weight, None, "silu", reverse)
    torch.testing.assert_close(causal_conv1d(x, weight, None, "silu", reverse), expected)
    torch.testing.assert_close(causal_conv1d(x.contiguous(), weight, None, "silu", reverse), expected)


def test_gradcheck() -> None:
    leaves = [x.requires_grad_() for x in inputs(2, 2, 5, 3)]
    assert torch.autograd.gradcheck(lambda *args: causal_conv1d(*args, "silu", True), leaves)


def test_bfloat16_is_summed_in_float32() -> None:
    half = [x.bfloat16() for x in inputs(2, 3, 20, 4)]
    y = causal_conv1d(*half, "silu")
    assert y.dtype == torch.bfloat16
    expected = padded_conv(*(x.float() for x in half), "silu", False)
    torch.testing.assert_close(y.float(), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 8)}, r"expected x \(B, D, L\)"),
        ({"weight": torch.zeros(4, 4)}, r"expected x \(B, D, L\) and weight \(D, W\)"),
        ({"bias": torch.zeros(4)}, r"expected bias \(3,\), received \(4,\)"),
        ({"activation": "relu"}, "activation must be"),
    ],
)
def test_wrong_inputs_are_explained(change: dict[str, object], message: str) -> None:
    x, weight, bias = inputs(2, 3, 8, 4)
    with pytest.raises(BimbaError, match=message):
        causal_conv1d(**({"x": x, "weight": weight, "bias": bias} | change))
