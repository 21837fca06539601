"""Step [3]: pixels to patch features."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import SiglipVisionModel

from bimba.types import BimbaError


def patch_features(vision_tower: SiglipVisionModel, pixel_values: Tensor) -> Tensor:
    """SigLIP's patch features, taken before ``post_layernorm``, as LLaVA-Video reads them.

    Args:
        pixel_values: (T, 3, height, width) float, normalised.

    Returns:
        (T, H, W, C) patch features in the tower's dtype.

    Raises:
        BimbaError: the pixels have another shape than the tower takes.
    """
    config: Any = vision_tower.config  # its sizes may be pairs by type; ours are numbers
    side = config.image_size
    if pixel_values.ndim != 4 or pixel_values.shape[1:] != (config.num_channels, side, side):
        raise BimbaError(
            f"Got pixel_values of shape {tuple(pixel_values.shape)}; the vision tower takes "
            f"(T, {config.num_channels}, {side}, {side}). Prepare frames with BimbaProcessor.pixel_values."
        )
    # The tower's own forward would normalise the features; hidden_states would keep every layer's in memory.
    embeddings = vision_tower.embeddings(pixel_values.to(vision_tower.dtype))
    features = vision_tower.encoder(inputs_embeds=embeddings).last_hidden_state  # (T, H*W, C)
    grid = side // config.patch_size
    return features.unflatten(1, (grid, grid))
