"""Step [4] without a compressor: pooled tokens go on as they are. The baseline every compressor has to beat."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from bimba.model.compressor._base import Compressor
from bimba.model.queries import query_sides
from bimba.types import BimbaError


class PoolCompressor(Compressor):
    """Nothing is learned.

    Args:
        mode: "bilinear": the queries, which are pooled so already (LLaVA-Video); "average": the mean of the tokens in
            each query's cell. They differ where a frame has an odd number of rows, or 4 and more of them in a query,
            and where frames are left that fill no group.
    """

    def __init__(self, hidden_size: int, mode: Literal["bilinear", "average"] = "bilinear") -> None:
        super().__init__(hidden_size)
        if mode not in ("bilinear", "average"):
            raise BimbaError(f"compressor option mode={mode!r} is unknown; choose one of: bilinear, average.")
        self.mode = mode

    def forward(self, space_time_tokens: Tensor, queries: Tensor, question: Tensor | None = None) -> Tensor:
        """(B, T, H, W, C), (B, T', Q', C) -> (B, T', Q', C) in the queries' dtype.

        "average" takes T // T' frames for each of the T' frames of queries, from the first on; so 5 of 10 frames where
        the queries are of 4 each.
        """
        self.check(space_time_tokens, queries, question)
        if self.mode == "bilinear":
            return queries
        groups, num_queries = queries.shape[1:3]
        batch, frames, rows, columns, _ = space_time_tokens.shape
        per_group = frames // groups
        tokens = space_time_tokens[:, : groups * per_group].unflatten(1, (groups, per_group)).mean(2)
        channels_first = tokens.flatten(0, 1).permute(0, 3, 1, 2)  # (B*T', C, H, W)
        pooled = F.adaptive_avg_pool2d(channels_first, query_sides(rows, columns, num_queries))
        return pooled.flatten(2).mT.unflatten(0, (batch, groups)).to(queries.dtype)


COMPRESSOR = PoolCompressor
