"""Gated aggregation at learned anchors: the paper's formula, any grid, streaming, how it starts and learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.compressor import gated_patch
from bimba.model.compressor.gated_patch import GatedPatchCompressor
from bimba.model.compressor.mamba import MambaCompressor
from bimba.model.config import BimbaConfig
from bimba.types import BimbaError
from tests.tiny_checkpoint import tiny_model

HIDDEN = 16


def make(**options: Any) -> GatedPatchCompressor:
    """No parameter left at a value that would hide an error, such as the zero out_proj."""
    torch.manual_seed(0)
    compressor = GatedPatchCompressor(HIDDEN, d_state=4, **options)
    with torch.no_grad():
        for parameter in compressor.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return compressor.double()


def make_inputs(frames: int = 3, rows: int = 4, columns: int = 4, queries: tuple[int, int] = (3, 4)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (2, frames, rows, columns, HIDDEN), (2, *queries, HIDDEN)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def run(call: Any, module: GatedPatchCompressor, *inputs: Tensor) -> dict[str, Tensor]:
    """Output and every gradient."""
    module.zero_grad()
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    y = call(*inputs)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))
    grads: dict[str, Any] = {name: p.grad.clone() for name, p in module.named_parameters()}
    return {"y": y.detach()} | {str(i): x.grad for i, x in enumerate(inputs)} | grads


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        torch.testing.assert_close(got[name], want, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def aggregate(compressor: GatedPatchCompressor, scanned: Tensor, patches: Tensor) -> Tensor:
    return torch.cat(compressor._aggregate(scanned, patches), dim=1)


@pytest.mark.parametrize("anchors_at_a_time", [64, 5])
def test_with_k_patches_per_anchor_it_is_the_papers_formula(
    monkeypatch: pytest.MonkeyPatch, anchors_at_a_time: int
) -> None:
    monkeypatch.setattr(gated_patch, "ANCHORS_AT_A_TIME", anchors_at_a_time)
    compressor = make(num_weights=4)  # 48 patches, 12 anchors

    def formula(tokens: Tensor, queries: Tensor) -> Tensor:
        anchors = compressor.anchor.expand(queries.shape)
        q = MambaCompressor.forward(compressor, tokens, anchors).flatten(1, 2)  # (B, 12, C)
        x = tokens.flatten(1, 3).unflatten(1, (12, 4))  # the four patches before each anchor
        alpha = (q @ compressor.weights.weight.T + compressor.weights.bias).softmax(-1)
        g = torch.sigmoid(q @ compressor.gate.weight.T + compressor.gate.bias)
        f = (1 - g) * q + g * (alpha[..., None] * x).sum(2)
        return queries + compressor.out_proj(compressor.norm(f)).view(queries.shape)

    inputs = make_inputs()
    assert_same(run(compressor, compressor, *inputs), run(formula, compressor, *inputs))


@pytest.mark.parametrize(("num_patches", "num_anchors"), [(27, 8), (729, 196), (40, 3), (5, 5), (3, 7)])
def test_on_any_grid_an_anchor_means_its_own_patches(num_patches: int, num_anchors: int) -> None:
    """Of ones comes one, and each patch is in one mean only: of the anchor that comes next."""
    compressor = make(num_weights=6)
    patches = torch.eye(num_patches, dtype=torch.float64).expand(1, -1, -1)
    alpha = aggregate(compressor, torch.randn(1, num_anchors, HIDDEN).double(), patches)[0]  # (Q, S)
    places = [place - i for i, place in enumerate(compressor.query_index(num_patches, num_anchors).tolist())]
    for start, stop, of_anchor in zip([0, *places[:-1]], places, alpha, strict=True):
        assert (of_anchor[start:stop] > 0).all()
        assert of_anchor.count_nonzero() == stop - start
        assert torch.isclose(of_anchor.sum(), torch.tensor(float(stop > start)).double(), atol=1e-6)
    assert sum(places[-1:]) == num_patches


def test_weights_between_two_of_the_learned_ones_lie_between_them() -> None:
    compressor = make(num_weights=2)
    torch.nn.init.zeros_(compressor.weights.weight)
    compressor.weights.bias.data = torch.tensor([0.0, 1.0]).double()
    patches = torch.eye(4, dtype=torch.float64)[None]
    alpha = aggregate(compressor, torch.zeros(1, 1, HIDDEN).double(), patches)[0, 0]
    expected = torch.tensor([0.0, 0.25, 0.75, 1.0]).double().softmax(0)  # middles of quarters, between those of halves
    torch.testing.assert_close(alpha, expected)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"question_conditioned": True}], ids=str)
def test_streamed_equals_whole(options: dict[str, Any]) -> None:
    inputs = make_inputs(queries=(3, 2))
    inputs += [torch.randn(2, 3, HIDDEN).double()] if options.get("question_conditioned") else []
    whole, pieces = make(chunk_tokens=0, **options), make(chunk_tokens=7, **options)
    assert_same(run(pieces, pieces, *inputs), run(whole, whole, *inputs))


def test_every_query_has_read_the_question() -> None:
    compressor, inputs = make(question_conditioned=True), make_inputs()
    one, other = (compressor(*inputs, torch.randn(2, 2, HIDDEN).double()) for _ in range(2))
    assert ((one - other).abs().amax(-1) > 1e-6).all()


def test_a_fresh_one_is_the_identity_and_everything_learns_from_the_second_step_on() -> None:
    torch.manual_seed(0)
    compressor = GatedPatchCompressor(HIDDEN)
    tokens, queries = (x.float() for x in make_inputs())
    optimizer = torch.optim.SGD(compressor.parameters(), lr=0.1)
    learning = []
    for _ in range(2):
        y = compressor(tokens, queries)
        if not learning:
            assert torch.equal(y, queries)
        optimizer.zero_grad()
        y.square().sum().backward()
        learning.append({name for name, p in compressor.named_parameters() if p.grad is not None and p.grad.any()})
        optimizer.step()
    assert learning == [{"out_proj.weight"}, {name for name, _ in compressor.named_parameters()}]


def test_made_by_transformers_saved_and_loaded(tmp_path: Any) -> None:
    base, _ = tiny_model()
    config = BimbaConfig.from_dict({**base.config.to_dict(), "compressor": {"name": "gated_patch", "d_state": 4}})
    model = BimbaForConditionalGeneration(config)
    tokens, queries = torch.randn(1, 2, 3, 3, 32), torch.randn(1, 2, 4, 32)
    assert torch.equal(model.compressor(tokens, queries), queries)
    torch.nn.init.normal_(model.compressor.out_proj.weight)
    model.save_pretrained(tmp_path)
    again = BimbaForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.compressor(tokens, queries), model.compressor(tokens, queries))


def test_no_weights_are_refused() -> None:
    with pytest.raises(BimbaError, match="num_weights must be a whole number of at least 1, received 0"):
        GatedPatchCompressor(HIDDEN, num_weights=0)
