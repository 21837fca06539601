"""``BimbaProcessor``: what stands between files and strings on one side and the model's tensors on the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import (
    AutoProcessor,
    BatchFeature,
    LlavaOnevisionImageProcessorPil,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    SiglipImageProcessor,
    SiglipImageProcessorPil,
)

from bimba.model.anyres import AnyRes, ImageSize
from bimba.model.compressor import reduction_of
from bimba.model.config import BimbaConfig
from bimba.model.queries import PUBLISHED_ROWS, query_grid
from bimba.model.splice import num_video_tokens
from bimba.ops.pixels import frames_to_pixels
from bimba.types import BimbaError, Frames

VIDEO_TAG = "<video>"
IMAGE_TAG = "<image>"
# Pillow's pixels are the original's to the bit; torchvision's come two to three times faster and now and then one of
# 256 levels off.
_BACKENDS: dict[str, type[SiglipImageProcessor] | type[SiglipImageProcessorPil]] = {
    "pil": SiglipImageProcessorPil,
    "torchvision": SiglipImageProcessor,
}


class BimbaProcessor(ProcessorMixin):
    """Frames and images to pixel values, text to ids, and how many tokens a video or an image becomes.

    Args:
        image_processor: resizes to the tower's size and normalises (SigLIP: mean and std 0.5).
        tokenizer: Qwen2's, with the token ``<|video_pad|>``, and ``<|image_pad|>`` if there are images.
        patch_grid: patch rows (= columns) of a frame.
        temporal_pooling, newline_position, num_frames, newline_after_medium, image_grid_pinpoints, image_max_tiles: as
            in ``BimbaConfig``, and the model's must be the same: who overrides one with ``AutoModel.from_pretrained``
            overrides it here too (``load_pretrained`` does both).
        reduction: [frames, rows] of the model's compressor if it has a ``reduction``, which then counts instead of
            ``temporal_pooling``.
        image_backend: "pil" or "torchvision": what ``image_processor`` resizes frames with, whatever it was made
            with. None: as it was made. Saved, because transformers forgets it when it saves an image processor.

    Raises:
        BimbaError: an unknown ``image_backend``.
    """

    video_token = "<|video_pad|>"
    image_token = "<|image_pad|>"

    image_processor: SiglipImageProcessor | SiglipImageProcessorPil
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        image_processor: SiglipImageProcessor | SiglipImageProcessorPil,
        tokenizer: PreTrainedTokenizerBase,
        patch_grid: int = 27,
        temporal_pooling: int = 1,
        newline_position: str = "grid",
        num_frames: int = 64,
        newline_after_medium: bool = True,
        image_grid_pinpoints: list | None = None,
        image_max_tiles: int | None = 9,
        image_backend: str | None = None,
        reduction: Sequence[int] | None = None,
        chat_template: str | None = None,
    ):
        self.patch_grid = patch_grid
        self.temporal_pooling = temporal_pooling
        self.newline_position = newline_position
        self.num_frames = num_frames
        self.newline_after_medium = newline_after_medium
        self.image_grid_pinpoints = image_grid_pinpoints
        self.image_max_tiles = image_max_tiles
        self.reduction = reduction
        self.image_backend = image_backend or image_processor.backend
        resizes = _of_backend(self.image_backend)
        if self.image_backend != image_processor.backend:
            image_processor = resizes.from_dict(image_processor.to_dict())
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def of(
        cls, config: BimbaConfig, tokenizer: PreTrainedTokenizerBase, image_backend: str = "torchvision"
    ) -> BimbaProcessor:
        """The processor that belongs to a model of this configuration; ``tokenizer`` has the placeholders already.

        Raises:
            BimbaError: an unknown ``image_backend``.
        """
        side = config.vision_config.image_size
        return cls(
            _of_backend(image_backend)(size={"height": side, "width": side}),
            tokenizer,
            patch_grid=config.patch_grid,
            temporal_pooling=config.temporal_pooling,
            newline_position=config.newline_position,
            num_frames=config.num_frames,
            newline_after_medium=config.newline_after_medium,
            image_grid_pinpoints=config.image_grid_pinpoints,
            image_max_tiles=config.image_max_tiles,
            reduction=reduction_of(config.compressor),
        )

    @property
    def video_token_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(self.video_token)  # type: ignore[return-value]

    def num_video_tokens(self, num_frames: int) -> int:
        """How many tokens a video of ``num_frames`` sampled frames is in the prompt.

        Raises:
            BimbaError: fewer frames than one query stands for.
        """
        frames, rows = self.reduction or (self.temporal_pooling, PUBLISHED_ROWS)
        num_groups, side = query_grid(num_frames, self.patch_grid, (frames, rows))
        return num_video_tokens(num_groups, side, side, self.newline_position)

    @property
    def anyres(self) -> AnyRes:
        """How images become tiles and tokens."""
        side = self.image_processor.size["height"]
        return AnyRes(side, self.patch_grid, self.image_grid_pinpoints, self.image_max_tiles)

    def num_image_tokens(self, image_size: ImageSize, whole: bool = False) -> int:
        """How many tokens an image of (width, height) pixels is in the prompt.

        Args:
            whole: as for :meth:`image_tiles`.

        Raises:
            BimbaError: not two positive numbers.
        """
        return self.anyres.num_tokens_whole if whole else self.anyres.num_tokens(image_size)

    def pixel_values(self, frames: Frames | np.ndarray) -> Tensor:
        """(T, height, width, 3) uint8 frames of any size to (T, 3, h, w) float32 normalised pixels.

        Raises:
            BimbaError: frames of another shape or dtype.
        """
        return frames_to_pixels(frames, self.image_processor)

    def image_tiles(self, image: Image.Image | np.ndarray, whole: bool = False) -> Tensor:
        """An image, or its (height, width, 3) uint8 RGB array, to (tiles, 3, h, w) float32 normalised pixels.

        The first tile is the whole image, the others the grid of :class:`~bimba.model.anyres.AnyRes` row by row.
        Always resized by Pillow: one image is quickly read, and these are the original's pixels to the bit.

        Args:
            whole: one tile only, the image in the middle of a grey square. So LLaVA reads images that are several in
                a conversation.

        Raises:
            BimbaError: an array of another shape or dtype.
        """
        anyres = self.anyres
        if whole:
            resize = SiglipImageProcessorPil.from_dict(self.image_processor.to_dict())
            square = _squared(_picture(image), self.image_processor.image_mean)
            tile: Tensor = resize(images=square, return_tensors="pt")["pixel_values"]
            return tile
        cutter = LlavaOnevisionImageProcessorPil(
            size={"height": anyres.side, "width": anyres.side},
            image_mean=self.image_processor.image_mean,
            image_std=self.image_processor.image_std,
            image_grid_pinpoints=[[height, width] for width, height in anyres.resolutions],
        )
        tiles: Tensor = cutter(images=_picture(image), return_tensors="pt")["pixel_values"][0]
        return tiles

    def __call__(
        self,
        text: str | Sequence[str],
        videos: Sequence[Frames | np.ndarray] = (),
        images: Sequence[Image.Image | np.ndarray] = (),
        **tokenizer_kwargs: Any,
    ) -> BatchFeature:
        """Prompts and their videos and images to the model's inputs.

        Args:
            text: one or more prompts; each ``<video>`` in them stands for the next of ``videos``, and each
                ``<image>`` for the next of ``images``.
            videos: frames, (T, height, width, 3) uint8 each.
            images: PIL images or (height, width, 3) uint8 arrays.
            tokenizer_kwargs: handed to the tokenizer (padding, return_tensors, ...).

        Raises:
            BimbaError: tags and videos or images do not match in number, or the tokenizer has no token for images.
        """
        texts = [text] if isinstance(text, str) else list(text)
        pixels = [self.pixel_values(video) for video in videos]
        texts = _expand(texts, VIDEO_TAG, self.video_token, [self.num_video_tokens(len(video)) for video in pixels])
        if images and self.image_token not in self.tokenizer.get_vocab():
            raise BimbaError(
                f"The tokenizer has no {self.image_token}, which stands for images in the prompt; add it as a special "
                "token and set the model's config.image_token_id to its id."
            )
        pictures = [_picture(image) for image in images]
        texts = _expand(texts, IMAGE_TAG, self.image_token, [self.num_image_tokens(one.size) for one in pictures])
        inputs = dict(self.tokenizer(texts, **{"return_tensors": "pt", **tokenizer_kwargs}))
        if pixels:
            inputs["pixel_values_videos"] = pixels
        if pictures:
            inputs["pixel_values_images"] = [self.image_tiles(picture) for picture in pictures]
            inputs["image_sizes"] = [picture.size for picture in pictures]
        return BatchFeature(inputs)


def _of_backend(name: str) -> type[SiglipImageProcessor] | type[SiglipImageProcessorPil]:
    if name not in _BACKENDS:
        raise BimbaError(f"image_backend is {name!r}; expected one of {', '.join(_BACKENDS)}.")
    return _BACKENDS[name]


def _expand(texts: list[str], tag: str, token: str, counts: list[int]) -> list[str]:
    """Each tag to as many tokens as its medium has: ``counts``, in order through all texts."""
    num_tags = sum(text.count(tag) for text in texts)
    if num_tags != len(counts):
        raise BimbaError(
            f"The text has {num_tags} {tag} tags for {len(counts)} {tag[1:-1]}s; give one tag per {tag[1:-1]}."
        )
    remaining = iter(counts)
    expanded = []
    for text in texts:
        head, *rest = text.split(tag)
        expanded.append(head + "".join(token * next(remaining) + part for part in rest))
    return expanded


def _squared(picture: Image.Image, mean: Sequence[float]) -> Image.Image:
    """A picture in the middle of a square of the mean colour, which becomes 0 when it is normalised."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * channel) for channel in mean))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _picture(image: Image.Image | np.ndarray) -> Image.Image:
    """An RGB picture of either kind of image."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        received = (
            f"shape {image.shape} and dtype {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        )
        raise BimbaError(f"Got an image of {received}; expected a PIL image or a (height, width, 3) uint8 RGB array.")
    return Image.fromarray(image)


AutoProcessor.register(BimbaConfig, BimbaProcessor)
