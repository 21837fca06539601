"""What single compressors promise beyond what all of them do."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bimba.model.compressor import build_compressor, reduction_of
from bimba.model.compressor.tome import merge
from bimba.model.queries import pool_queries
from bimba.types import BimbaError


def test_merging_keeps_the_sum_and_takes_the_most_alike() -> None:
    x = torch.randn(3, 8, 5, dtype=torch.float64)
    x[:, 5] = 2 * x[:, 2]  # an even and an odd one in the same direction
    sizes = torch.ones(3, 8, dtype=torch.float64)
    y, counts = merge(x, sizes, 1)
    torch.testing.assert_close(y[:, 4], (x[:, 2] + x[:, 5]) / 2)  # where 5 was, without 2 before it
    assert counts.tolist() == [[1, 1, 1, 1, 2, 1, 1]] * 3
    y, counts = merge(y, counts, 3)
    assert torch.equal(counts.sum(1), torch.full((3,), 8.0, dtype=torch.float64))
    torch.testing.assert_close((y * counts[..., None]).sum(1), x.sum(1))


def test_merged_tokens_are_of_their_own_frames() -> None:
    tokens = torch.randn(1, 4, 4, 4, 8)
    queries = pool_queries(tokens, (2, 2)).flatten(2, 3)
    before = build_compressor({"name": "tome"}, 8)(tokens, queries)
    tokens[:, 2:] = torch.randn(1, 2, 4, 4, 8)
    after = build_compressor({"name": "tome"}, 8)(tokens, queries)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.isclose(before[:, 1], after[:, 1]).any()


def test_tome_counts_what_tokens_stand_for_under_autocast() -> None:
    sizes = torch.tensor([[257.0, 258.0, 259.0, 260.0]])  # bfloat16 has no odd numbers there
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, merged = merge(x, sizes, 2)
    assert merged.tolist() == [[515.0, 519.0]]


def test_average_is_the_mean_of_each_querys_tokens() -> None:
    tokens = torch.randn(2, 4, 4, 6, 8)
    queries = pool_queries(tokens, (2, 2)).flatten(2, 3)
    average = build_compressor({"name": "pool", "mode": "average"}, 8)
    torch.testing.assert_close(average(tokens, torch.zeros_like(queries)), queries)


def test_none_returns_every_token_and_has_no_other_reduction() -> None:
    tokens = torch.randn(1, 2, 3, 3, 8)
    assert reduction_of({"name": "none"}) == (1, 1)
    assert torch.equal(build_compressor({"name": "none"}, 8)(tokens, torch.zeros(1, 2, 9, 8)), tokens.flatten(2, 3))
    with pytest.raises(BimbaError, match=r"reduction is \[4, 2\], but 'none' has \[1, 1\] always"):
        build_compressor({"name": "none", "reduction": [4, 2]}, 8)
    with pytest.raises(BimbaError, match="a query for each of the"):
        build_compressor({"name": "none"}, 8)(tokens, torch.zeros(1, 2, 4, 8))


def test_a_convolution_leaves_no_token_out() -> None:
    conv = build_compressor({"name": "conv", "kernel": [2, 3]}, 8)
    tokens = torch.randn(1, 4, 4, 4, 8)
    torch.nn.init.normal_(conv.out_proj.weight)
    tokens.requires_grad_()
    conv(tokens, torch.zeros(1, 2, 4, 8)).square().sum().backward()
    assert tokens.grad is not None and tokens.grad.abs().sum(-1).all()
    with pytest.raises(BimbaError, match=r"more than the window.*larger kernel, such as \[4, 2\]"):
        conv(tokens, torch.zeros(1, 1, 4, 8))


def test_the_operations_of_merging_are_those_of_its_similarities_and_means() -> None:
    tome = build_compressor({"name": "tome"}, 16)
    with FlopCounterMode(display=False) as counter:
        tome(torch.randn(1, 5, 4, 6, 16), torch.zeros(1, 2, 6, 16))
    counted = list(tome.products((5, 4, 6), (2, 6)))  # two groups of two frames: 48 tokens to 24, 12, and 6
    merged = [24, 12, 6]
    assert [operations for kind, operations in counted if kind is None] == [2.0 * 2 * n * 16 for n in merged]
    # The similarities are matrix products, and so is, here, who goes where: as a matrix of zeros and ones.
    moves = sum(2 * 2 * odds * n * (16 + 1) for odds, n in zip(merged, merged))
    assert sum(operations for kind, operations in counted if kind is not None) == counter.get_total_flops() - moves


@pytest.mark.parametrize("name", ["attention", "perceiver"])
def test_the_operations_of_attention_are_those_of_its_matrices(name: str) -> None:
    compressor = build_compressor({"name": name}, 16)
    counted = list(compressor.products((4, 4, 6), (2, 6)))
    matrices = {id(matrix) for matrix, _ in counted if matrix is not None}
    assert matrices == {id(p) for p in compressor.parameters() if p.ndim > 1}
    length = 96 + 12 * (name == "attention")
    assert [count for matrix, count in counted if matrix is None] == [4.0 * 12 * length * 32]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "pool", "mode": "max"}, "mode='max' is unknown; choose one of: bilinear, average"),
        ({"name": "perceiver", "queries": "random"}, "queries='random' is unknown; choose one of: pooled, learned"),
        ({"name": "perceiver", "num_layers": 0}, "num_layers must be a whole number of at least 1, received 0"),
        ({"name": "attention", "num_layers": 0}, "num_layers must be a whole number of at least 1, received 0"),
        ({"name": "conv", "kernel": [3]}, r"kernel must be \[frames, rows\], such as .*received \[3\]"),
        ({"name": "conv", "kernel": 5}, r"kernel must be \[frames, rows\], such as .*received 5"),
        ({"name": "conv", "kernel": [5, "a"]}, r"kernel\[1\] must be a whole number of at least 1, received 'a'"),
        ({"name": "conv", "channels": 0}, "channels must be a whole number of at least 1, received 0"),
        ({"name": "attention", "expand": 0}, "expand must be a whole number of at least 1, received 0"),
        ({"name": "perceiver", "expand": 1.5}, "expand must be a whole number of at least 1, received 1.5"),
        ({"name": "pool", "question_conditioned": True}, "'pool' cannot be conditioned"),
    ],
)
def test_wrong_options_are_explained(config: dict, message: str) -> None:
    with pytest.raises(BimbaError, match=message):
        build_compressor(config, 16)


@pytest.mark.parametrize("queries", ["pooled", "learned"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_perceiver_asks_with_either(queries: str, num_layers: int) -> None:
    compressor = build_compressor({"name": "perceiver", "queries": queries, "num_layers": num_layers}, 16)
    for parameter in compressor.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    tokens, zeros = torch.randn(1, 2, 3, 3, 16), torch.zeros(1, 2, 4, 16)
    changed = [compressor(tokens, q) - q for q in (zeros, torch.randn(1, 2, 4, 16))]
    assert torch.allclose(*changed, atol=1e-5) == (queries == "learned")


def test_queries_that_no_pooling_makes_are_explained() -> None:
    with pytest.raises(BimbaError, match="5 queries per frame, which no pooling makes of 4 x 4"):
        build_compressor({"name": "attention"}, 16)(torch.zeros(1, 2, 4, 4, 16), torch.zeros(1, 2, 5, 16))
