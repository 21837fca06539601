"""What the compressors by attention share: a layer that adds where and when to its inputs, and these positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bimba.model.attention import AttentionMixer
from bimba.model.mamba import RMSNorm

OCTAVES = 8  # the finest wave has a period of 1/64 of the video


class Positions(nn.Module):
    """A vector for every cell of a grid of any size: a linear map of sines and cosines of where its middle lies.

    Where is a share of the whole, 0 to 1 in time, rows and columns, so that tokens and queries have one scale and any
    number of frames fits.
    """

    def __init__(self, hidden_size: int, bias: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 2 * OCTAVES, hidden_size, bias=bias)

    def reset_parameters(self) -> None:
        self.linear.reset_parameters()

    def forward(self, grid: Sequence[int]) -> Tensor:
        """(T, H, W) -> (T * H * W, C)."""
        weight = self.linear.weight
        axes = [(torch.arange(n, device=weight.device, dtype=torch.float32) + 0.5) / n for n in grid]
        where = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)  # (T * H * W, 3)
        octaves = math.pi * 2.0 ** torch.arange(OCTAVES, device=weight.device)
        waves = (where[..., None] * octaves).flatten(1)
        found: Tensor = self.linear(torch.cat([waves.sin(), waves.cos()], dim=-1).to(weight.dtype))
        return found


class AttentionLayer(nn.Module):
    """mixer(norm(x) + positions): what attention adds to x. The same norm and mixer for who asks and who is asked."""

    def __init__(self, hidden_size: int, expand: int) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden_size)
        self.mixer = AttentionMixer(hidden_size, expand)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.norm.weight)
        self.mixer.reset_parameters()

    def forward(self, asking: Tensor, asked: Tensor, where_asking: Tensor, where_asked: Tensor) -> Tensor:
        """What is added to ``asking``, (B, Q, C).

        Args:
            asking: (B, Q, C).
            asked: (B, L, C).
            where_asking: (Q, C), positions.
            where_asked: (n, C), positions of the first n of L; those behind have none.
        """

        def keys() -> Tensor:
            normed: Tensor = self.norm(asked)
            first = normed[:, : len(where_asked)] + where_asked
            return torch.cat([first, normed[:, len(where_asked) :]], dim=1)

        added: Tensor = self.mixer(keys, self.norm(asking) + where_asking, None)
        return added
