"""Step [4] without a compressor: the pooled queries go on as they are. The baseline every compressor has to beat."""

from __future__ import annotations

from torch import Tensor

from bimba.model.compressor._base import Compressor


class PoolCompressor(Compressor):
    """Average pooling made the queries already; nothing is learned."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)

    def forward(self, space_time_tokens: Tensor, queries: Tensor, question: Tensor | None = None) -> Tensor:
        """(B, T, H, W, C), (B, T', Q', C) -> (B, T', Q', C), the queries unchanged."""
        self.check(space_time_tokens, queries, question)
        return queries


COMPRESSOR = PoolCompressor
