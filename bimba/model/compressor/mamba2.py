"""Step [4]: the selective-scan compressor with Mamba-2's scan (SSD) in the place of Mamba's."""

from __future__ import annotations

from functools import partial
from typing import Literal

from bimba.model.compressor._base import check_sizes
from bimba.model.compressor.mamba import MambaCompressor
from bimba.model.mamba2 import Mamba2Mixer


class Mamba2Compressor(MambaCompressor):
    """BIMBA's compressor around :class:`bimba.model.mamba2.Mamba2Mixer`: where the queries stand, what is read of the
    last layer, streaming and the leading question are :class:`MambaCompressor`'s.

    Args: as there, but
        d_state: N, state entries per channel; larger than Mamba's, as a head's channels share their decay.
        head_dim: P, channels of a head; a layer of fewer inner channels is one head.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int = 1,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        head_dim: int = 64,
        query_position: Literal["interleaved", "appended"] = "interleaved",
        bidirectional: bool = True,
        multi_scale: bool = True,
        norm: bool = True,
        residual: bool = True,
        chunk_tokens: int | Literal["auto"] = "auto",
        question_conditioned: bool = False,
    ) -> None:
        check_sizes(d_state=d_state, d_conv=d_conv, expand=expand, head_dim=head_dim)
        super().__init__(
            hidden_size,
            num_layers=num_layers,
            query_position=query_position,
            bidirectional=bidirectional,
            multi_scale=multi_scale,
            norm=norm,
            residual=residual,
            mixer=partial(Mamba2Mixer, hidden_size, d_state, d_conv, expand, head_dim, bidirectional),
            chunk_tokens=chunk_tokens,
            question_conditioned=question_conditioned,
        )

    def reset_parameters(self) -> None:
        for layer in self.layers:
            layer.mixer.reset_parameters()  # type: ignore[operator, union-attr]


COMPRESSOR = Mamba2Compressor
