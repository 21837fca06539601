"""``BimbaProcessor``: what stands between files and strings on one side and the model's tensors on the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, BaseImageProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from bimba.model.config import BimbaConfig
from bimba.model.queries import query_grid
from bimba.model.splice import num_video_tokens
from bimba.types import BimbaError, Frames

VIDEO_TAG = "<video>"


class BimbaProcessor(ProcessorMixin):
    """Frames to pixel values, text to ids, and how many tokens a video becomes.

    Args:
        image_processor: resizes to the tower's size and normalises (SigLIP: mean and std 0.5).
        tokenizer: Qwen2's, with the token ``<|video_pad|>``.
        patch_grid: patch rows (= columns) of a frame.
        temporal_pooling, newline_position, num_frames: as in ``BimbaConfig``.
    """

    video_token = "<|video_pad|>"
    image_token = "<|image_pad|>"

    image_processor: BaseImageProcessor
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        patch_grid: int = 27,
        temporal_pooling: int = 1,
        newline_position: str = "grid",
        num_frames: int = 64,
        chat_template: str | None = None,
    ):
        self.patch_grid = patch_grid
        self.temporal_pooling = temporal_pooling
        self.newline_position = newline_position
        self.num_frames = num_frames
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def video_token_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(self.video_token)  # type: ignore[return-value]

    def num_video_tokens(self, num_frames: int) -> int:
        """How many tokens a video of ``num_frames`` sampled frames is in the prompt.

        Raises:
            BimbaError: fewer frames than ``temporal_pooling``.
        """
        num_groups, side = query_grid(num_frames, self.patch_grid, self.temporal_pooling)
        return num_video_tokens(num_groups, side, side, self.newline_position)

    def pixel_values(self, frames: Frames | np.ndarray) -> Tensor:
        """(T, height, width, 3) uint8 frames of any size to (T, 3, h, w) float32 normalised pixels.

        Raises:
            BimbaError: frames of another shape or dtype.
        """
        pixels = frames.pixels if isinstance(frames, Frames) else frames
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
            raise BimbaError(
                f"Got frames of shape {pixels.shape} and dtype {pixels.dtype}; "
                "expected (T, height, width, 3) uint8 RGB."
            )
        channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        output = self.image_processor(images=channels_first, input_data_format="channels_first", return_tensors="pt")
        return output["pixel_values"]

    def __call__(
        self,
        text: str | Sequence[str],
        videos: Sequence[Frames | np.ndarray] = (),
        **tokenizer_kwargs: Any,
    ) -> BatchFeature:
        """Prompts and their videos to the model's inputs.

        Args:
            text: one or more prompts; each ``<video>`` in them stands for the next of ``videos``.
            videos: frames, (T, height, width, 3) uint8 each.
            tokenizer_kwargs: handed to the tokenizer (padding, return_tensors, ...).

        Raises:
            BimbaError: tags and videos do not match in number.
        """
        texts = [text] if isinstance(text, str) else list(text)
        pixels = [self.pixel_values(video) for video in videos]
        num_tags = sum(t.count(VIDEO_TAG) for t in texts)
        if num_tags != len(pixels):
            raise BimbaError(
                f"The text has {num_tags} {VIDEO_TAG} tags for {len(pixels)} videos; give one tag per video."
            )
        remaining = iter(pixels)
        expanded = []
        for one in texts:
            head, *rest = one.split(VIDEO_TAG)
            expanded.append(
                head + "".join(self.video_token * self.num_video_tokens(len(next(remaining))) + part for part in rest)
            )
        inputs = self.tokenizer(expanded, **{"return_tensors": "pt", **tokenizer_kwargs})
        return BatchFeature({**inputs, **({"pixel_values_videos": pixels} if pixels else {})})


AutoProcessor.register(BimbaConfig, BimbaProcessor)
