"""Step [4] with nothing taken away: every token goes on as it is. What compressing costs is measured against this."""

from __future__ import annotations

from torch import Tensor

from bimba.model.compressor._base import Compressor
from bimba.types import BimbaError


class AllTokens(Compressor):
    """One query per token, and the query is the token."""

    fixed_reduction = (1, 1)

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)

    def forward(self, space_time_tokens: Tensor, queries: Tensor, question: Tensor | None = None) -> Tensor:
        """(B, T, H, W, C), (B, T, H W, C) -> (B, T, H W, C), the tokens in the queries' dtype.

        Raises:
            BimbaError: there are not as many queries as tokens.
        """
        self.check(space_time_tokens, queries, question)
        tokens = space_time_tokens.flatten(2, 3)
        if tokens.shape != queries.shape:
            raise BimbaError(
                f"compressor none: expected a query for each of the {tuple(tokens.shape[1:3])} tokens, received "
                f"{tuple(queries.shape[1:3])} queries; pool them with reduction (1, 1)."
            )
        return tokens.to(queries.dtype)


COMPRESSOR = AllTokens
