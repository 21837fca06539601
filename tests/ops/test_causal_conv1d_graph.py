"""The convolution as a node of graphs, and the choice of its backend."""

from __future__ import annotations

import logging

import pytest
import torch
from test_causal_conv1d import BACKENDS, definition, few_tiles, make_inputs, nan_in_new_memory
from torch import Tensor

from bimba.ops import bidirectional_conv1d, causal_conv1d
from bimba.ops.causal_conv1d import REGISTRY, cpp, pytorch, triton
from bimba.ops.causal_conv1d.inputs import Conv
from bimba.ops.causal_conv1d.op import conv_op
from bimba.types import BimbaError

__all__ = ["few_tiles", "nan_in_new_memory"]  # fixtures


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_operator_is_registered_in_full(backend: str, bias: bool) -> None:
    inputs = make_inputs(2, 3, 2, 2) | ({} if bias else {"bias": None})
    leaves = [None if x is None else x.requires_grad_() for x in inputs.values()]
    torch.library.opcheck(conv_op, (*leaves, True, False, backend))


class Convolutions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        inputs = make_inputs(2, 9, 5, 4)
        self.weight, self.bias = torch.nn.Parameter(inputs["weight"]), torch.nn.Parameter(inputs["bias"])

    def forward(self, x: Tensor) -> Tensor:
        y = bidirectional_conv1d(x, self.weight, self.bias, True)
        return y + causal_conv1d(x.mT, self.weight[0], None, "silu").mT


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    module, x = Convolutions(), make_inputs(2, 9, 5, 4)["x"]
    results = []
    for function in (module, torch.compile(module, backend="aot_eager", fullgraph=True)):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])])
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected)


def test_exports_one_node_for_both_directions() -> None:
    module, x = Convolutions(), make_inputs(2, 9, 5, 4)["x"]
    length = torch.export.Dim("length", min=2, max=100)
    exported = torch.export.export(module, (x,), dynamic_shapes=({1: length},))
    calls = [node for node in exported.graph.nodes if "bimba.causal_conv1d" in str(node.target)]
    assert len(calls) == 2  # one for each function that the module calls
    longer = make_inputs(2, 31, 5, 4)["x"]
    torch.testing.assert_close(exported.module()(longer), module(longer))


def call_of(dtype: torch.dtype = torch.float32) -> Conv:
    return Conv(**make_inputs(1, 3, 2, 4, dtype=dtype), silu=True, reverse=False)


def test_auto_takes_the_compiled_one_or_what_the_variable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIMBA_CONV_BACKEND", raising=False)
    assert REGISTRY.choose("auto", call_of()) is cpp.BACKEND
    assert REGISTRY.choose("auto", call_of(torch.bfloat16)) is cpp.BACKEND
    assert REGISTRY.choose("auto", call_of(torch.float64)) is pytorch.BACKEND
    assert REGISTRY.choose("auto", call_of(torch.float16)) is pytorch.BACKEND
    monkeypatch.setenv("BIMBA_CONV_BACKEND", "pytorch")
    assert REGISTRY.choose("auto", call_of()) is pytorch.BACKEND


def test_what_the_compiled_one_refuses() -> None:
    x, weight, bias = make_inputs(1, 3, 2, 4).values()
    with pytest.raises(BimbaError, match="'cpp' was asked for but cannot run: it takes x in float32 or bfloat16"):
        bidirectional_conv1d(x.half(), weight, bias, True, backend="cpp")
    with pytest.raises(BimbaError, match="it computes in float32, an input is float64"):
        bidirectional_conv1d(x, weight.double(), bias, True, backend="cpp")


def test_the_interpreter_takes_no_other_device_than_the_cpu() -> None:
    x, weight, bias = make_inputs(1, 3, 2, 4).values()
    call = Conv(x.to("meta"), weight.to("meta"), bias.to("meta"), silu=True, reverse=False)
    assert triton.BACKEND.refuses(call) == "it runs on a GPU, the inputs are on meta"


def test_without_a_compiler_pytorch_does_it_and_the_reason_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("BIMBA_CONV_BACKEND", raising=False)
    monkeypatch.setattr(cpp, "_library", lambda: "there is no C++ compiler here; a test took it away")
    inputs = make_inputs(1, 3, 2, 4)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            y = bidirectional_conv1d(*inputs.values(), True)
    torch.testing.assert_close(y, definition(*inputs.values(), True))
    (warning,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert "'cpp' passed over: there is no C++ compiler here" in warning
