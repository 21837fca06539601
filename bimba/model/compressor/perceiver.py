"""Step [4] by cross-attention: queries look at the tokens, tokens look at nothing (Perceiver, Q-Former, resamplers)."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bimba.model.compressor._attending import AttentionLayer, Positions
from bimba.model.compressor._base import Compressor, Product, check_sizes
from bimba.model.compressor._question import warn_of_one_layer
from bimba.model.queries import query_sides
from bimba.types import BimbaError


class PerceiverCompressor(Compressor):
    """Adds to the pooled queries what latents, which start as these or are learned, find among the tokens.

    Args:
        hidden_size: C, of tokens and queries.
        num_layers: each a norm and cross-attention, with a residual.
        expand: inner channels D = expand * C.
        queries: what asks first: "pooled", the queries; or "learned", one learned vector for each place in time, row
            and column, a smooth function of it, so that any number of queries has its own.
        question_conditioned: the question's tokens are among those that are asked.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int = 1,
        expand: int = 2,
        queries: Literal["pooled", "learned"] = "pooled",
        question_conditioned: bool = False,
    ) -> None:
        super().__init__(hidden_size, question_conditioned)
        if queries not in ("pooled", "learned"):
            raise BimbaError(f"compressor option queries={queries!r} is unknown; choose one of: pooled, learned.")
        check_sizes(num_layers=num_layers, expand=expand)
        if question_conditioned and num_layers == 1:
            warn_of_one_layer()
        self.positions = Positions(hidden_size)
        self.latents = Positions(hidden_size, bias=True) if queries == "learned" else None
        self.layers = nn.ModuleList(AttentionLayer(hidden_size, expand) for _ in range(num_layers))

    def reset_parameters(self) -> None:
        """PyTorch's initialisation, and zero out_projs: a fresh compressor adds nothing to the queries."""
        for module in (self.positions, *self.layers, *([] if self.latents is None else [self.latents])):
            module.reset_parameters()

    def forward(self, space_time_tokens: Tensor, queries: Tensor, question: Tensor | None = None) -> Tensor:
        """(B, T, H, W, C), (B, T', Q', C) -> (B, T', Q', C) in the queries' dtype, computed in the weights'."""
        self.check(space_time_tokens, queries, question)
        dtype, grid = self.dtype(), space_time_tokens.shape[1:4]
        query_grid = (queries.shape[1], *query_sides(grid[1], grid[2], queries.shape[2]))
        where_queries, where = self.positions(query_grid), self.positions(grid)
        parts = [space_time_tokens.flatten(1, 3), *([] if question is None else [question])]
        asked = torch.cat([part.to(dtype) for part in parts], dim=1)  # (B, S + P, C)
        compressed = queries.to(dtype).flatten(1, 2)
        latents = compressed if self.latents is None else self.latents(query_grid).expand_as(compressed)
        for layer in self.layers:
            found = layer(latents, asked, where_queries, where)
            latents, compressed = latents + found, compressed + found
        return compressed.view(queries.shape).to(queries.dtype)

    def products(self, grid: tuple[int, int, int], queries: tuple[int, int]) -> Iterator[Product]:
        """As of every compressor."""
        num_queries = prod(queries)
        length = torch.Size(grid).numel()
        yield self.positions.linear.weight, length + num_queries
        if self.latents is not None:
            yield self.latents.linear.weight, num_queries
        for layer in self.layers:
            mixer: Any = layer.mixer
            yield from mixer.products(length, num_queries)


COMPRESSOR = PerceiverCompressor
