"""Where the queries stand among the space-time tokens (step [4]): evenly spread, the last query last."""

from __future__ import annotations

import torch
from torch import Tensor

from bimba.types import BimbaError


def query_positions(num_space_time: int, num_queries: int) -> Tensor:
    """Positions (Q,) int64 of the queries in the interleaved sequence of S + Q tokens, strictly increasing.

    They are the integers of ``torch.linspace(0, S + Q - 1, Q + 1, dtype=int)[1:]``, written out so that every device
    and version agrees: linspace counts up from the left end in its first half and down from the right end in its
    second half, in float64, and truncates. It is not always floor((i + 1) (S + Q - 1) / Q).
    """
    if num_space_time < 1 or num_queries < 1:
        raise BimbaError(
            f"interleaving needs at least one space-time token and one query, "
            f"received {num_space_time} and {num_queries}."
        )
    last = num_space_time + num_queries - 1
    step = last / num_queries
    i = torch.arange(1, num_queries + 1, dtype=torch.float64)
    from_left = step * i
    from_right = last - step * (num_queries - i)
    return torch.where(i < (num_queries + 1) // 2, from_left, from_right).trunc().long()


def queries_before(position: int, num_space_time: int, num_queries: int) -> int:
    """How many of :func:`query_positions` lie before ``position``: by arithmetic on numbers, without a tensor."""
    last = num_space_time + num_queries - 1
    step = last / num_queries
    low, high = 0, num_queries  # the answer lies in [low, high]
    while low < high:
        i = (low + high) // 2 + 1  # the i-th query, counted from 1
        place = int(step * i) if i < (num_queries + 1) // 2 else int(last - step * (num_queries - i))
        if place < position:
            low = i
        else:
            high = i - 1
    return low


def interleave(space_time: Tensor, queries: Tensor, query_index: Tensor) -> Tensor:
    """(B, S, C), (B, Q, C) -> (B, S + Q, C) with the queries at ``query_index`` (Q,), both in their own order."""
    length = space_time.shape[1] + queries.shape[1]
    combined = space_time.new_empty(space_time.shape[0], length, space_time.shape[2])
    combined[:, query_index] = queries.to(combined.dtype)
    combined[:, _other_positions(length, query_index)] = space_time
    return combined


def deinterleave(combined: Tensor, query_index: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S + Q, C) -> space-time tokens (B, S, C), queries (B, Q, C): the inverse of :func:`interleave`."""
    others = _other_positions(combined.shape[1], query_index)
    return combined.index_select(1, others), combined.index_select(1, query_index)


def _other_positions(length: int, query_index: Tensor) -> Tensor:
    """(S,): token j stands behind all queries that have at most j tokens before them."""
    tokens_before = query_index - torch.arange(len(query_index), device=query_index.device)
    j = torch.arange(length - len(query_index), device=query_index.device)
    return j + torch.searchsorted(tokens_before, j, right=True)
