"""Step [4] without a compressor: the pooled queries go on as they are. The baseline every compressor has to beat."""

from __future__ import annotations

from torch import Tensor, nn


class PoolCompressor(nn.Module):
    """Average pooling made the queries already; nothing is learned."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, space_time_tokens: Tensor, queries: Tensor) -> Tensor:
        """(B, T, H, W, C), (B, T', Q', C) -> (B, T', Q', C), the queries unchanged."""
        return queries


COMPRESSOR = PoolCompressor
