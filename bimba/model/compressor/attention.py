"""Step [4] by self-attention: tokens and queries see each other all. What a scan is to be as good as, at less cost."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from bimba.model.compressor._attending import AttentionLayer, Positions
from bimba.model.compressor._base import Compressor, Product, check_sizes
from bimba.model.compressor._question import warn_of_one_layer
from bimba.model.queries import query_sides


class AttentionCompressor(Compressor):
    """Every layer but the last computes all positions, the last one those of the queries.

    Args:
        hidden_size: C, of tokens and queries.
        num_layers: each a norm and self-attention, with a residual.
        expand: inner channels D = expand * C.
        question_conditioned: the question's tokens are in the sequence, too.
    """

    def __init__(
        self, hidden_size: int, num_layers: int = 1, expand: int = 2, question_conditioned: bool = False
    ) -> None:
        super().__init__(hidden_size, question_conditioned)
        check_sizes(num_layers=num_layers, expand=expand)
        if question_conditioned and num_layers == 1:
            warn_of_one_layer()
        self.positions = Positions(hidden_size)
        self.layers = nn.ModuleList(AttentionLayer(hidden_size, expand) for _ in range(num_layers))

    def reset_parameters(self) -> None:
        """PyTorch's initialisation, and zero out_projs: a fresh compressor adds nothing to the queries."""
        for module in (self.positions, *self.layers):
            module.reset_parameters()

    def forward(self, space_time_tokens: Tensor, queries: Tensor, question: Tensor | None = None) -> Tensor:
        """(B, T, H, W, C), (B, T', Q', C) -> (B, T', Q', C) in the queries' dtype, computed in the weights'."""
        self.check(space_time_tokens, queries, question)
        dtype, grid = self.dtype(), space_time_tokens.shape[1:4]
        sides = query_sides(grid[1], grid[2], queries.shape[2])
        where_queries = self.positions((queries.shape[1], *sides))
        where = torch.cat([where_queries, self.positions(grid)])  # (Q + S, C)
        parts = [queries.flatten(1, 2), space_time_tokens.flatten(1, 3), *([] if question is None else [question])]
        sequence = torch.cat([part.to(dtype) for part in parts], dim=1)  # queries, tokens, question
        num_queries, behind = len(where_queries), sequence.shape[1] - len(where)
        for layer in self.layers[:-1]:
            everywhere = torch.cat([where, where.new_zeros(behind, where.shape[1])])
            sequence = sequence + layer(sequence, sequence, everywhere, where)
        read = sequence[:, :num_queries]
        compressed = read + self.layers[-1](read, sequence, where_queries, where)
        return compressed.view(queries.shape).to(queries.dtype)

    def products(self, grid: tuple[int, int, int], queries: tuple[int, int]) -> Iterator[Product]:
        """As of every compressor; the last layer is read at the queries only."""
        num_queries = prod(queries)
        length = torch.Size(grid).numel() + num_queries
        yield self.positions.linear.weight, length
        for number, layer in enumerate(self.layers, start=1):
            mixer: Any = layer.mixer
            yield from mixer.products(length, num_queries if number == len(self.layers) else length)


COMPRESSOR = AttentionCompressor
