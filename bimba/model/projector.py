"""Step [3]: patch features into the language model's space."""

from __future__ import annotations

from torch import Tensor, nn


class Projector(nn.Sequential):
    """LLaVA's ``mlp2x_gelu``: linear, GELU, linear. (..., vision C) -> (..., text C)."""

    def __init__(self, vision_hidden_size: int, text_hidden_size: int):
        super().__init__(
            nn.Linear(vision_hidden_size, text_hidden_size),
            nn.GELU(),
            nn.Linear(text_hidden_size, text_hidden_size),
        )

    def forward(self, features: Tensor) -> Tensor:
        # The vision tower may run in another dtype than the projector that is being trained.
        return super().forward(features.to(next(self.parameters()).dtype))
