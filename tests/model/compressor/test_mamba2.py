"""Mamba-2's scan as a compressor: against transformers' mixer and against the plain recurrence, with every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as TransformersMixer

from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.compressor.mamba2 import Mamba2Compressor
from bimba.model.config import BimbaConfig
from bimba.model.mamba import IN_FLOAT32, cast
from bimba.model.mamba2 import Mamba2Mixer
from bimba.ops.ssd.reference import ssd_reference
from bimba.training.optim import is_decayed
from bimba.types import BimbaError
from tests.tiny_checkpoint import tiny_model

HIDDEN, STATES, HEAD_DIM = 16, 6, 8


def randomised(module: nn.Module) -> Any:
    """No parameter left at a value that would hide an error, such as the zero out_proj."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def make(**options: Any) -> Mamba2Compressor:
    torch.manual_seed(0)
    return randomised(Mamba2Compressor(HIDDEN, d_state=STATES, head_dim=HEAD_DIM, **options)).double()


def run(call: Any, module: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Output and every gradient."""
    module.zero_grad()
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    y = call(*inputs)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))
    grads: dict[str, Any] = {name: p.grad.clone() for name, p in module.named_parameters()}
    return {"y": y.detach()} | {str(i): x.grad for i, x in enumerate(inputs)} | grads


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        error = (got[name] - want).abs().max() / want.abs().max()
        assert error <= tolerance, f"{name}: {error:.1e}"


def test_one_direction_read_everywhere_is_transformers_mixer() -> None:
    ours = randomised(Mamba2Mixer(HIDDEN, STATES, head_dim=HEAD_DIM, bidirectional=False))
    config = Mamba2Config(
        hidden_size=HIDDEN, expand=2, head_dim=HEAD_DIM, num_heads=2 * HIDDEN // HEAD_DIM, state_size=STATES,
        n_groups=1, conv_kernel=4, chunk_size=8, num_hidden_layers=1,
    )  # fmt: skip
    theirs = TransformersMixer(config, layer_idx=0)
    names = ("A_log", "D", "conv1d.weight", "conv1d.bias", "norm.weight", "out_proj.weight")
    xBC, z = ours.in_proj.weight.split([ours.conv_dim, ours.d_inner])
    own = {name: ours.get_parameter(name) for name in names}
    own |= {"in_proj.weight": torch.cat([z, xBC, ours.dt_proj.weight]), "dt_bias": ours.dt_proj.bias}
    theirs.load_state_dict(own)

    x = torch.randn(2, 29, HIDDEN)
    expected, got = run(theirs, theirs, x), run(lambda x: ours(lambda: x, x, None), ours, x)
    of_z, of_xBC, of_dt = expected.pop("in_proj.weight").split([ours.d_inner, ours.conv_dim, ours.num_heads])
    expected |= {"in_proj.weight": torch.cat([of_xBC, of_z]), "dt_proj.weight": of_dt}
    expected["dt_proj.bias"] = expected.pop("dt_bias")
    assert_same(got, expected, 1e-5)


def plain(mixer: Mamba2Mixer, x: Tensor, query_index: Tensor) -> Tensor:
    """Every position computed, the backward direction on flipped copies, the queries selected."""
    xBC, z = F.linear(x, mixer.in_proj.weight).split([mixer.conv_dim, mixer.d_inner], dim=-1)
    total: Any = 0
    for suffix, turn in (("", lambda t: t), ("_b", lambda t: t.flip(1))):
        conv, dt_proj = mixer.get_submodule(f"conv1d{suffix}"), mixer.get_submodule(f"dt_proj{suffix}")
        padded = F.pad(turn(xBC).mT, (conv.kernel_size[0] - 1, 0))
        u, B, C = F.silu(conv(padded)).mT.split([mixer.d_inner, STATES, STATES], dim=-1)
        dt = F.softplus(dt_proj(turn(x)))
        A, D = -mixer.get_parameter(f"A{suffix}_log").exp(), mixer.get_parameter(f"D{suffix}")
        y, _ = ssd_reference(u.unflatten(2, (-1, HEAD_DIM)), dt, A, B, C, D)
        total = total + turn(y.flatten(2))
    return mixer.out_proj(mixer.norm(total * F.silu(z)))[:, query_index]


def test_at_queries_only_in_both_directions_it_is_the_recurrence() -> None:
    compressor = make(norm=False, residual=False)
    mixer = compressor.layers[0].mixer
    tokens, queries = torch.randn(2, 3, 3, 3, HIDDEN).double(), torch.randn(2, 2, 4, HIDDEN).double()

    def expected(tokens: Tensor, queries: Tensor) -> Tensor:
        index = compressor.query_index(27, 8)
        sequence = torch.zeros(2, 35, HIDDEN).double()
        others = torch.tensor([i for i in range(35) if i not in index.tolist()])
        sequence = sequence.index_copy(1, index, queries.flatten(1, 2)).index_copy(1, others, tokens.flatten(1, 3))
        return plain(mixer, sequence, index).view(queries.shape)

    assert_same(run(compressor, compressor, tokens, queries), run(expected, compressor, tokens, queries))


@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": False}, {"num_layers": 2}, {"query_position": "appended"}, {"question_conditioned": True}],
    ids=str,
)
def test_streamed_equals_whole(options: dict[str, Any]) -> None:
    inputs = [torch.randn(2, 5, 3, 3, HIDDEN).double(), torch.randn(2, 5, 2, HIDDEN).double()]
    inputs += [torch.randn(2, 3, HIDDEN).double()] if options.get("question_conditioned") else []
    whole, pieces = make(chunk_tokens=0, **options), make(chunk_tokens=7, **options)
    assert_same(run(pieces, pieces, *inputs), run(whole, whole, *inputs))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_every_query_has_read_the_question(bidirectional: bool) -> None:
    compressor = make(bidirectional=bidirectional, question_conditioned=True)
    inputs = torch.randn(1, 2, 3, 3, HIDDEN).double(), torch.randn(1, 2, 4, HIDDEN).double()
    one, other = (compressor(*inputs, torch.randn(1, 2, HIDDEN).double()) for _ in range(2))
    assert ((one - other).abs().amax(-1) > 1e-6).all()


def test_what_decays_is_kept_wide_and_is_not_decayed() -> None:
    base, _ = tiny_model()
    compressor = {"name": "mamba2", "d_state": STATES, "head_dim": HEAD_DIM}
    model = BimbaForConditionalGeneration(BimbaConfig.from_dict({**base.config.to_dict(), "compressor": compressor}))
    cast(model, torch.bfloat16)
    constants = {name: p for name, p in model.compressor.named_parameters() if name.endswith(IN_FLOAT32)}
    assert {name.removeprefix("layers.0.mixer.") for name in constants} == set(IN_FLOAT32)
    assert all(p.dtype == torch.float32 and not is_decayed(name, p) for name, p in constants.items())
    assert model.compressor.layers[0].mixer.in_proj.weight.dtype == torch.bfloat16
    tokens, queries = torch.randn(1, 2, 3, 3, 32).bfloat16(), torch.randn(1, 2, 4, 32).bfloat16()
    assert torch.equal(model.compressor(tokens, queries), queries)  # transformers' own initialisation is undone


def test_saved_and_loaded(tmp_path: Any) -> None:
    base, _ = tiny_model()
    compressor = {"name": "mamba2", "d_state": STATES, "head_dim": HEAD_DIM}
    model = BimbaForConditionalGeneration(BimbaConfig.from_dict({**base.config.to_dict(), "compressor": compressor}))
    randomised(model.compressor)
    model.save_pretrained(tmp_path)
    half = BimbaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16).compressor.state_dict()
    for name, tensor in model.compressor.state_dict().items():
        assert torch.equal(half[name], tensor if name.endswith(IN_FLOAT32) else tensor.bfloat16()), name


def test_heads_that_do_not_divide_the_channels() -> None:
    with pytest.raises(BimbaError, match=r"head_dim=7 channels: .* received 2 \* 16 = 32"):
        Mamba2Compressor(HIDDEN, head_dim=7)
    assert Mamba2Compressor(HIDDEN).layers[0].mixer.num_heads == 1  # 32 channels, fewer than one head of 64
