"""Query positions against the original's lists; interleaving and its inverse."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from bimba.ops import deinterleave, interleave, queries_before, query_positions
from bimba.types import BimbaError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/compressor/interleave_indices.json").read_text())


def test_positions_equal_the_originals_small_sizes() -> None:
    assert len(GOLDEN["small"]) == 572
    for case in GOLDEN["small"]:
        positions = query_positions(case["n_space_time"], case["n_query"])
        assert positions.tolist() == case["idx"], (case["n_space_time"], case["n_query"])


@pytest.mark.parametrize("case", GOLDEN["real_sizes"], ids=lambda case: f"{case['n_space_time']}+{case['n_query']}")
def test_positions_equal_the_originals_real_sizes(case: dict) -> None:
    positions = query_positions(case["n_space_time"], case["n_query"])
    assert hashlib.sha256(positions.numpy().astype("<i8").tobytes()).hexdigest() == case["sha256_int64_le"]


@pytest.mark.parametrize("sizes", [(1, 1), (1, 7), (13 * 49, 13 * 9), (100, 99), (5, 500)])
def test_positions_are_increasing_and_end_the_sequence(sizes: tuple[int, int]) -> None:
    positions = query_positions(*sizes)
    assert (positions.diff() > 0).all()
    assert positions[-1] == sum(sizes) - 1
    assert positions.shape == (sizes[1],)


def test_positions_need_tokens_and_queries() -> None:
    with pytest.raises(BimbaError, match="received 0 and 3"):
        query_positions(0, 3)
    with pytest.raises(BimbaError, match="received 3 and 0"):
        query_positions(3, 0)


def test_interleave_and_back() -> None:
    tokens, queries = torch.randn(2, 7, 3, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True)
    index = query_positions(7, 4)
    combined = interleave(tokens, queries, index)
    assert torch.equal(combined[:, index], queries)
    back = deinterleave(combined, index)
    assert torch.equal(back[0], tokens)
    assert torch.equal(back[1], queries)
    weight = torch.randn_like(combined)
    (combined * weight).sum().backward()
    expected = deinterleave(weight, index)
    assert torch.equal(tokens.grad, expected[0])
    assert torch.equal(queries.grad, expected[1])


@pytest.mark.parametrize(("num_space_time", "num_queries"), [(1, 1), (5, 9), (45, 10), (46656, 12544), (100, 7)])
def test_queries_before_a_position_are_counted_without_a_tensor(num_space_time: int, num_queries: int) -> None:
    positions = query_positions(num_space_time, num_queries)
    bounds = range(0, num_space_time + num_queries + 1, max(1, num_space_time // 97))
    counted = [queries_before(bound, num_space_time, num_queries) for bound in bounds]
    assert counted == torch.searchsorted(positions, torch.tensor(list(bounds))).tolist()
