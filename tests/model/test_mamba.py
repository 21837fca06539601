"""One layer of the compressor: initialisation, and computing at queries only against computing everything."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bimba.model.attention import AttentionMixer
from bimba.model.block import MambaBlock
from bimba.model.mamba import MambaMixer, RMSNorm
from bimba.ops import deinterleave
from bimba.types import BimbaError

HIDDEN, STATES = 32, 4


def randomised(module: nn.Module) -> nn.Module:
    """No parameter left at a value that would hide an error, such as the zero out_proj."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def output_and_gradients(block: nn.Module, x: Tensor, index: Tensor, **options: Any) -> dict[str, Tensor]:
    """Of the queries, which are ``x`` at ``index``; with ``everything``, of the whole sequence."""
    block.zero_grad()
    x = x.clone().requires_grad_()
    y = block(*deinterleave(x, index), index, **options)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y) if "everything" not in options else cotangent(y, index))
    if "everything" in options:
        y = y[:, index]
    return {"y": y.detach(), "x": x.grad} | {name: p.grad.clone() for name, p in block.named_parameters()}


def cotangent(y: Tensor, index: Tensor) -> Tensor:
    """As if only the queries of y were read."""
    at_queries = torch.linspace(-1, 1, y[:, index].numel()).view_as(y[:, index])
    return torch.zeros_like(y).index_copy(1, index, at_queries)


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        error = (got[name] - want).abs().max() / want.abs().max().clamp(min=1e-6)
        assert error <= 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("positions", [[0], [40], [3, 4, 17, 39], list(range(41))])
@pytest.mark.parametrize(
    "make_mixer",
    [
        lambda: MambaMixer(HIDDEN, STATES),
        lambda: MambaMixer(HIDDEN, STATES, bidirectional=False),
        lambda: AttentionMixer(HIDDEN),
    ],
    ids=["bidirectional", "forward", "attention"],
)
def test_query_only_equals_full_computation(make_mixer: Any, positions: list[int], residual: bool) -> None:
    block = randomised(MambaBlock(make_mixer(), HIDDEN, residual=residual))
    x, index = torch.randn(2, 41, HIDDEN), torch.tensor(positions)
    full = output_and_gradients(block, x, index, everything=True)
    assert_same(output_and_gradients(block, x, index), full)


def test_query_only_parts_run_at_queries_only() -> None:
    block = randomised(MambaBlock(MambaMixer(HIDDEN, STATES), HIDDEN))
    d_inner, dt_rank = block.mixer.d_inner, block.mixer.dt_rank
    products: list[tuple[int, int]] = []  # (rows, columns) of every matrix product

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
                products.append(tuple(out.shape))
            return out

    with torch.no_grad(), Products():
        block(torch.randn(1, 190, HIDDEN), torch.randn(1, 10, HIDDEN), torch.arange(9, 200, 20))
    per_direction = [(1, 200, dt_rank + 2 * STATES), (1, 200, d_inner)]  # low-rank step size, B and C; step size
    once = [(200, d_inner), (10, d_inner), (10, HIDDEN)]  # x; gate and out_proj at the queries
    assert sorted(products, key=str) == sorted([*per_direction, *per_direction, *once], key=str)


def test_products_are_made_in_the_models_dtype() -> None:
    """A processor with instructions for bfloat16 multiplies four times as fast in it."""
    mixer = MambaMixer(HIDDEN).bfloat16()
    seen: set[torch.dtype] = set()

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
                seen.update(x.dtype for x in args)
            return func(*args, **(kwargs or {}))

    x = torch.randn(1, 50, HIDDEN, dtype=torch.bfloat16)
    with torch.no_grad(), Products():
        mixer(lambda: x, x, None)
    assert seen == {torch.bfloat16}


def test_parameters_are_named_as_the_originals() -> None:
    expected = {"A_log", "D", "A_b_log", "D_b", "in_proj.weight", "out_proj.weight", "x_proj.weight", "x_proj_b.weight"}
    for module in ("conv1d", "conv1d_b", "dt_proj", "dt_proj_b"):
        expected |= {f"{module}.weight", f"{module}.bias"}
    assert {name for name, _ in MambaMixer(HIDDEN).named_parameters()} == expected
    forward = {name for name in expected if "_b" not in name}
    assert {name for name, _ in MambaMixer(HIDDEN, bidirectional=False).named_parameters()} == forward


def test_number_of_parameters_at_the_real_size() -> None:
    with torch.device("meta"):
        block = MambaBlock(MambaMixer(3584), 3584)
    assert sum(p.numel() for p in block.parameters()) == 84_284_928


def test_initialisation_is_the_originals() -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(64, d_state=16)
    states = torch.arange(1.0, 17.0)
    torch.testing.assert_close(mixer.A_log.exp(), states.expand(128, 16))
    A_b = states.expand(128, 16).clone()
    A_b.fill_diagonal_(1.0)
    torch.testing.assert_close(mixer.A_b_log.exp(), A_b)
    assert (mixer.D == 1).all()
    assert (mixer.D_b == 1).all()
    assert (mixer.out_proj.weight == 0).all()
    steps, steps_b = (nn.functional.softplus(m.bias) for m in (mixer.dt_proj, mixer.dt_proj_b))
    assert steps.min() >= 0.00099
    assert steps.max() <= 0.101
    assert steps.log().std() > 1  # log-uniform, not all alike
    bound = mixer.dt_rank**-0.5
    assert mixer.dt_proj.weight.abs().max() <= bound
    assert mixer.dt_proj_b.bias.abs().max() <= bound
    assert steps_b.min() > math.log1p(math.exp(-bound)) - 1e-6  # the backward direction has no special steps


def test_backward_direction_may_begin_as_the_forward_one() -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(64, d_state=16, backward_init="forward")
    assert torch.equal(mixer.A_b_log, mixer.A_log)
    steps = nn.functional.softplus(mixer.dt_proj_b.bias)
    assert steps.min() >= 0.00099
    assert steps.max() <= 0.101
    assert not torch.equal(mixer.dt_proj_b.bias, mixer.dt_proj.bias)  # drawn for itself


def test_reset_parameters_restores_the_initialisation() -> None:
    for mixer in (MambaMixer(HIDDEN), AttentionMixer(HIDDEN)):
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.fill_(7.0)
        mixer.reset_parameters()
        assert not any((p == 7).any() for p in mixer.parameters())
        assert (mixer.out_proj.weight == 0).all()


def test_model_in_bfloat16_still_scans_with_float32_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, torch.dtype] = {}

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, **_: Any) -> Any:
        seen.update(u=u.dtype, A=A.dtype, D=D.dtype, delta_bias=bias.dtype)
        return torch.zeros_like(u, dtype=torch.float32), None

    monkeypatch.setattr("bimba.model.mamba.scan_directions", scan)
    x = torch.zeros(1, 5, HIDDEN, dtype=torch.bfloat16)
    assert MambaMixer(HIDDEN).bfloat16()(lambda: x, x, None).dtype == torch.bfloat16
    assert seen == {"u": torch.bfloat16, "A": torch.float32, "D": torch.float32, "delta_bias": torch.float32}


def test_rms_norm() -> None:
    norm = RMSNorm(HIDDEN)
    with torch.no_grad():
        norm.weight.uniform_()
    x = torch.randn(2, 3, HIDDEN)
    expected = nn.functional.rms_norm(x, (HIDDEN,), norm.weight, 1e-6)
    torch.testing.assert_close(norm(x), expected)


def test_attention_needs_a_width_divisible_by_its_heads() -> None:
    with pytest.raises(BimbaError, match=r"divisible by it, received 1 \* 12 = 12"):
        AttentionMixer(12, expand=1)
