"""A question that leads the sequence: what depends on it, and that pieces, layers and directions all agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bimba.model.compressor import MambaCompressor, build_compressor, complete, what_it_computes
from bimba.model.compressor._question import warn_of_one_layer
from bimba.types import BimbaError

HIDDEN, P = 16, 5
TWO_LAYERS = {"num_layers": 2}


def make(**options: Any) -> MambaCompressor:
    torch.manual_seed(0)
    compressor = MambaCompressor(HIDDEN, d_state=4, **{"question_conditioned": True, **options})
    with torch.no_grad():
        for parameter in compressor.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return compressor


def inputs(frames: int = 5, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """45 tokens, 10 queries and a question of 5: 65 positions with both ends."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, frames, 3, 3, HIDDEN), (2, frames, 2, HIDDEN), (2, P, HIDDEN))
    tokens, queries, question = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    return tokens, queries, question


def run(compressor: MambaCompressor) -> dict[str, Tensor]:
    """The refined queries and every gradient."""
    given = dict(zip(("tokens", "queries", "question"), inputs(), strict=True))
    compressor.zero_grad()
    y = compressor(*given.values())
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
    grads = {name: x.grad for name, x in [*given.items(), *compressor.named_parameters()] if x.grad is not None}
    return {"y": y.detach(), **grads}


@pytest.mark.parametrize(
    "options",
    [{}, TWO_LAYERS, {"bidirectional": False}, {"query_position": "appended"}, {"residual": False, "norm": False}],
    ids=str,
)
def test_streamed_equals_whole(options: dict[str, Any]) -> None:
    expected = run(make(chunk_tokens=0, **options))
    assert expected["question"].abs().min(dim=2).values.gt(0).all()  # every word of it counts
    for chunk_tokens in (1, 4, 5, 13, 64):  # pieces that end inside the question, behind it, and far from it
        got = run(make(chunk_tokens=chunk_tokens, **options))
        for name, want in expected.items():
            error = (got[name] - want).abs().max() / want.abs().max()
            assert error <= 1e-5, f"{chunk_tokens}, {name}: {error:.1e}"


@pytest.mark.parametrize("reverse", [False, True])
def test_each_direction_has_read_the_question_before_any_token(reverse: bool) -> None:
    """By hand: one direction alone, over a sequence that begins with the question, read in that direction."""
    compressor = make()
    mixer, norm = compressor.layers[0].mixer, compressor.layers[0].norm
    tokens, queries, question = (x.detach().flatten(1, -2) for x in inputs())
    index = compressor.query_index(45, 10)
    sequence = torch.empty(2, 55, HIDDEN)
    sequence[:, index] = queries
    sequence[:, [i for i in range(55) if i not in index]] = tokens
    led = torch.cat([sequence, question] if reverse else [question, sequence], dim=1)
    directions = mixer.directions((int(reverse),))
    alone = mixer.scan(mixer.convolve(mixer.inner(norm(led)), directions), None, directions)[0][0]
    expected = alone[:, index if reverse else index + P]

    seen = []
    scan = mixer.scan
    mixer.scan = lambda *given: seen.append(scan(*given)) or seen[-1]  # type: ignore[method-assign,func-returns-value]
    compressor(*inputs())
    torch.testing.assert_close(seen[int(reverse)][0][0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, TWO_LAYERS, {"mixer": "attention"}], ids=str)
def test_what_is_kept_depends_on_what_is_asked(options: dict[str, Any]) -> None:
    compressor = make(**options)
    tokens, queries, question = inputs()
    other = inputs(seed=2)[2]
    with torch.no_grad():
        change = (compressor(tokens, queries, question) - compressor(tokens, queries, other)).abs()
        torch.testing.assert_close(
            compressor(tokens[:1], queries[:1], question[:1]), compressor(tokens, queries, question)[:1]
        )
    assert change.amax(dim=-1).gt(1e-4).all()  # at every query


@pytest.mark.parametrize(
    ("config", "warns"),
    [
        *(({"name": name}, True) for name in ("mamba", "mamba2", "attention", "perceiver")),
        ({"name": "mamba", "num_layers": 2}, False),
        ({"name": "mamba", "question_conditioned": False}, False),
        ({"name": "gated_patch"}, False),
    ],
    ids=str,
)
def test_one_layer_that_cannot_select_by_the_question_says_so_once(
    config: dict[str, Any], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_one_layer.cache_clear()
    for _ in range(2):
        build_compressor({"question_conditioned": True, **config}, HIDDEN)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == warns
    assert all("model.compressor.num_layers=2" in message for message in said)


def test_a_fresh_one_returns_its_queries_and_has_the_weights_of_one_without() -> None:
    fresh = MambaCompressor(HIDDEN, question_conditioned=True)
    tokens, queries, question = inputs()
    assert torch.equal(fresh(tokens, queries, question), queries)
    assert fresh.state_dict().keys() == MambaCompressor(HIDDEN).state_dict().keys()


def test_without_a_question_nothing_has_changed() -> None:
    compressor = MambaCompressor(HIDDEN)
    tokens, queries, question = inputs()
    with pytest.raises(BimbaError, match="received a question, but was built without question_conditioned=true"):
        compressor(tokens, queries, question)
    for wrong in (None, question[:, :0], question[:1]):
        with pytest.raises(BimbaError, match="needs the embedded question|expected a question"):
            make()(tokens, queries, wrong)
    assert what_it_computes({"name": "mamba", "question_conditioned": False}) == what_it_computes({"name": "mamba"})
    assert what_it_computes({"name": "mamba", "question_conditioned": True}) != what_it_computes({"name": "mamba"})


def test_a_compressor_that_cannot_do_it_says_which_can() -> None:
    with pytest.raises(
        BimbaError, match=r"'pool' cannot be conditioned on the question.*those that have it are: .*mamba"
    ):
        build_compressor({"name": "pool", "question_conditioned": True}, HIDDEN)
    assert complete({"name": "mamba"})["question_conditioned"] is False
