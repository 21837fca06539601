"""Small real files, and a stand-in for the processor."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SiglipImageProcessor

from bimba.data.needle import NeedleConfig

TINY_CLIP = NeedleConfig(
    num_video_frames=24, size=32, needle_px=8, needle_frames=(2, 3), needle_gap=2, distractors=(0, 1)
)
GOLDEN = Path(__file__).parents[1] / "golden" / "text"


class StubProcessor:
    """What the data path asks of a ``BimbaProcessor``, without a model: one token per two frames, 16 x 16 pixels."""

    def __init__(self) -> None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        raw = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|video_pad|>", "<|image_pad|>"]
        raw.add_special_tokens([AddedToken(token, special=True) for token in special])
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<|endoftext|>")
        self.image_processor = SiglipImageProcessor(size={"height": 16, "width": 16})

    def num_video_tokens(self, num_frames: int) -> int:
        return num_frames // 2

    def num_image_tokens(self, image_size: tuple[int, int], whole: bool = False) -> int:
        return 2 if whole else 3

    def image_tiles(self, image: Image.Image, whole: bool = False) -> torch.Tensor:
        pixels = self.image_processor(images=[image] * (1 if whole else 2), return_tensors="pt")
        return pixels["pixel_values"]


def numbered_frames(num_frames: int, size: int = 64) -> np.ndarray:
    """(T, size, size, 3) uint8; each frame's number is painted on it as eight black or white stripes."""
    bits = np.unpackbits(np.arange(num_frames, dtype=np.uint8)[:, None], axis=1)  # (T, 8)
    stripes = np.repeat(bits * 255, size // 8, axis=1)  # (T, size)
    return np.broadcast_to(stripes[:, None, :, None], (num_frames, size, size, 3)).astype(np.uint8)


def frame_numbers(pixels: np.ndarray) -> list[int]:
    """The numbers that ``numbered_frames`` painted, read back."""
    num_frames, height, width, channels = pixels.shape
    stripes = pixels.reshape(num_frames, height, 8, width // 8, channels).mean(axis=(1, 3, 4))
    return np.packbits(stripes > 127, axis=1)[:, 0].tolist()


def write_video(path: Path, frames: np.ndarray, rate: int = 8, **container: Any) -> Path:
    with av.open(str(path), "w", **container) as file:
        stream = file.add_stream("libx264", rate=Fraction(rate))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast", "g": "8", "threads": "1"}
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path
