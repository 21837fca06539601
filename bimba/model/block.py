"""Step [4]: one layer of the compressor. A norm, a mixer (bidirectional scans, or attention to compare), a residual."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bimba.model.attention import AttentionMixer
from bimba.model.mamba import MambaMixer, RMSNorm
from bimba.model.mamba2 import Mamba2Mixer
from bimba.model.streaming import stream
from bimba.ops import interleave

ScanMixer = MambaMixer | Mamba2Mixer
Mixer = ScanMixer | AttentionMixer


class MambaBlock(nn.Module):
    """x + mixer(norm(x)) of the sequence of space-time tokens with the queries among them."""

    mixer: Mixer

    def __init__(self, mixer: Mixer, hidden_size: int, norm: bool = True, residual: bool = True) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden_size) if norm else nn.Identity()
        self.mixer = mixer
        self.residual = residual

    def forward(
        self,
        tokens: Tensor,
        queries: Tensor,
        query_index: Tensor,
        *,
        everything: bool = False,
        pieces: Sequence[tuple[int, int]] = (),
    ) -> Tensor:
        """(B, S, C), (B, Q, C), (Q,) -> the queries (B, Q, C), or with ``everything`` the sequence (B, S + Q, C).

        ``pieces``: how many tokens and queries are in work at a time (see :mod:`bimba.model.streaming`); none: all.
        """
        if pieces and not isinstance(self.mixer, AttentionMixer):
            return stream(self.mixer, self.norm, self.residual, tokens, queries, query_index, everything, pieces)
        if everything:
            combined = interleave(tokens, queries, query_index)
            normed = self.norm(combined)
            y = self.mixer(lambda: normed, normed, None)
            return y + combined if self.residual else y

        def x() -> Tensor:
            normed: Tensor = self.norm(interleave(tokens, queries, query_index))
            return normed

        y = self.mixer(x, self.norm(queries), query_index)
        return y + queries if self.residual else y
