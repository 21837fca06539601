"""How long samples are before they are read: tokens, estimated from what the index knows."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from bimba.data.index import Index
from bimba.data.index_rows import MODALITIES
from bimba.data.rows import IMAGE, VIDEO

_BYTES_PER_TOKEN = 3.0  # of text: English has about 4.5, so that estimates are rather too long than too short
_MARKUP_TOKENS = 6  # around each turn
_LARGE_IMAGE = (100_000, 100_000)  # pixels: makes about as many tokens as an image can have


class Processor(Protocol):
    """What the data path needs of a ``BimbaProcessor``."""

    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor

    def num_video_tokens(self, num_frames: int) -> int: ...

    def num_image_tokens(self, image_size: tuple[int, int], whole: bool = False) -> int: ...

    def image_tiles(self, image: Image.Image, whole: bool = False) -> Tensor: ...


def estimated_tokens(index: Index, processor: Processor, num_frames: int) -> np.ndarray:
    """(samples,) int64: about how long each sequence is; images and texts count as rather too long."""
    text = np.ceil(index.column("bytes") / _BYTES_PER_TOKEN)
    markup = _MARKUP_TOKENS * (index.column("turns") + 1)  # and the system's turn
    modalities = index.column("modality")
    of_medium = np.array(
        [
            _tokens_at_most(modality, processor, num_frames) if number in modalities else 0
            for number, modality in enumerate(MODALITIES)
        ]
    )
    media = of_medium[modalities] * index.column("media")
    return (text + markup + media).astype(np.int64)


def _tokens_at_most(modality: str, processor: Processor, num_frames: int) -> int:
    """How many tokens one medium of a sample has; images, whose sizes nobody has looked at, count as large."""
    if modality == VIDEO:
        return processor.num_video_tokens(num_frames)
    if modality == IMAGE:
        return processor.num_image_tokens(_LARGE_IMAGE)
    return processor.num_image_tokens(_LARGE_IMAGE, whole=True) if modality == "multi_image" else 0
