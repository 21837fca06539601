"""Step [2]: frames to the pixels that the vision tower reads.

The image processor is SigLIP's from transformers: bicubic resize, rescale to [0, 1], normalise to [-1, 1].
``SiglipImageProcessorPil`` gives the original implementation's pixels to the bit; ``SiglipImageProcessor``
(torchvision) is two to three times faster and differs by one of 256 levels in under one percent of the values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bimba.types import BimbaError, Frames

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


def frames_to_pixels(frames: Frames | np.ndarray, image_processor: BaseImageProcessor) -> Tensor:
    """Resizes and normalises all frames of a video in one call.

    Args:
        frames: decoded frames, or their (T, height, width, 3) uint8 RGB array.
        image_processor: a transformers image processor; its ``size`` is the (h, w) of the result.

    Returns:
        (T, 3, h, w) float32.

    Raises:
        BimbaError: an array of another shape or type.
    """
    pixels: Any = frames.pixels if isinstance(frames, Frames) else frames
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        received = f"dtype {pixels.dtype}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise BimbaError(f"Got frames of {received}; expected a numpy array of uint8, RGB values from 0 to 255.")
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise BimbaError(f"Got frames of shape {pixels.shape}; expected (T, height, width, 3), T at least 1.")
    # A (T, 3, height, width) view: the processor neither copies it into a list nor guesses where the channels are.
    channels_first = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(0, 3, 1, 2)
    output = image_processor(images=channels_first, input_data_format="channels_first", return_tensors="pt")
    pixel_values: Tensor = output["pixel_values"]
    return pixel_values
