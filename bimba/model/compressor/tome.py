"""Step [4] by token merging (Bolya et al., 2023): the most similar tokens become one, until few enough are left."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from bimba.model.compressor._base import NO_GRADIENT, Compressor, Product


class ToMeCompressor(Compressor):
    """Bipartite soft matching within T // T' frames for each frame of queries. Nothing is learned.

    A round deals the tokens of a group out in turn, even ones and odd ones; each even one knows the odd one most like
    it (cosine), and the pairs most alike merge, as means weighted by how many tokens each already stands for. A round
    halves a group at most, and rounds go on until Q' tokens are left. These stand in the order of time, row and column
    of the token that took the others in. Ties go to the earlier one, so the result is always the same.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)

    def forward(self, space_time_tokens: Tensor, queries: Tensor, question: Tensor | None = None) -> Tensor:
        """(B, T, H, W, C), (B, T', Q', C) -> (B, T', Q', C) in their dtype; of the queries only the shape counts.

        Frames that fill no group of T // T' are left out. Where T is no multiple of the frames that one query stands
        for, these are more than it averaged: 5 each of 10 frames in groups of 4.
        """
        self.check(space_time_tokens, queries, question)
        groups, num_queries = queries.shape[1:3]
        per_group = space_time_tokens.shape[1] // groups
        tokens = space_time_tokens[:, : groups * per_group].unflatten(1, (groups, per_group))
        x = tokens.flatten(0, 1).flatten(1, 3)  # (G, n, C) for the G = B * T' groups
        sizes = x.new_ones(x.shape[:2], dtype=torch.float32)  # tokens each stands for
        while (excess := x.shape[1] - num_queries) > 0:
            x, sizes = merge(x, sizes, min(excess, x.shape[1] // 2))
        return x.reshape(queries.shape).to(queries.dtype)

    def products(self, grid: tuple[int, int, int], queries: tuple[int, int]) -> Iterator[Product]:
        """As of every compressor: of each round the cosines of all pairs, and two operations per merged channel."""
        groups, num_queries = queries
        left = grid[0] // groups * grid[1] * grid[2]
        while (excess := left - num_queries) > 0:
            count = min(excess, left // 2)
            yield NO_GRADIENT, 2.0 * groups * (left - left // 2) * (left // 2) * self.hidden_size
            yield None, 2.0 * groups * count * self.hidden_size
            left -= count


def merge(x: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(G, n, C), (G, n) -> (G, n - count, C), (G, n - count): one round. ``count`` is at most n // 2."""
    even, odd = x[:, ::2], x[:, 1::2]
    # Which tokens merge has no gradient; what they become does. In float32: 16 bits would take other pairs.
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        alike = F.normalize(even.float(), dim=-1) @ F.normalize(odd.float(), dim=-1).mT  # (G, evens, odds)
        best, partner = alike.max(dim=-1)
        order = best.argsort(dim=-1, descending=True, stable=True)
        going, staying = order[:, :count], order[:, count:].sort(dim=-1).values
        # Who goes where as a matrix: a product adds up in one order on every device, scattered sums do not.
        takes = F.one_hot(partner.gather(1, going), odd.shape[1]).to(x.dtype).mT  # (G, odds, count)
        kept = torch.cat([2 * staying, torch.arange(1, x.shape[1], 2, device=x.device).expand(len(x), -1)], dim=1)
        in_order = kept.argsort(dim=-1)
        weight = sizes[:, ::2].gather(1, going)  # 16 bits would round numbers above 256
        total = sizes[:, 1::2] + (takes.to(weight.dtype) @ weight[..., None]).squeeze(-1)
    moved = _rows(even, going) * weight[..., None].to(x.dtype)
    taken = (odd * sizes[:, 1::2, None].to(x.dtype) + takes @ moved) / total[..., None].to(x.dtype)
    left = torch.cat([_rows(even, staying), taken], dim=1)
    left_sizes = torch.cat([sizes[:, ::2].gather(1, staying), total], dim=1)
    return _rows(left, in_order), left_sizes.gather(1, in_order)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """(G, n, C), (G, m) -> (G, m, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


COMPRESSOR = ToMeCompressor
