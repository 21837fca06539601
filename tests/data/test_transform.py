from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import SiglipImageProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from bimba.data.transform import frames_to_pixels
from bimba.data.video import read_frames
from bimba.types import BimbaError

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (5, 48, 80, 3), dtype=np.uint8)
SIZE = {"height": 32, "width": 24}
PROCESSORS = [SiglipImageProcessor(size=SIZE), SiglipImageProcessorPil(size=SIZE)]


@pytest.mark.parametrize("image_processor", PROCESSORS, ids=lambda p: type(p).__name__)
def test_pixels_of_both_processors(image_processor):
    pixels = frames_to_pixels(FRAMES, image_processor)
    assert pixels.shape == (5, 3, 32, 24)
    assert pixels.dtype == torch.float32
    assert -1 <= pixels.min() < -0.5 < 0.5 < pixels.max() <= 1
    one_by_one = [image_processor(images=frame, return_tensors="pt")["pixel_values"] for frame in FRAMES]
    torch.testing.assert_close(pixels, torch.cat(one_by_one), rtol=0, atol=0)


def test_both_processors_nearly_agree():
    fast, exact = (frames_to_pixels(FRAMES, image_processor) for image_processor in PROCESSORS)
    assert (fast - exact).abs().max() < 1.01 / 127.5  # one of 256 levels


def test_same_size_is_only_normalised():
    pixels = frames_to_pixels(FRAMES, SiglipImageProcessor(size={"height": 48, "width": 80}))
    expected = torch.from_numpy(FRAMES).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)


def test_frames_of_a_file(video):
    frames = read_frames(video, 4)
    torch.testing.assert_close(
        frames_to_pixels(frames, PROCESSORS[0]), frames_to_pixels(frames.pixels, PROCESSORS[0]), rtol=0, atol=0
    )


def test_array_that_is_read_only_or_strided():
    view = FRAMES[:, ::-1, ::2]
    view.setflags(write=False)
    copied = frames_to_pixels(view.copy(), PROCESSORS[0])
    torch.testing.assert_close(frames_to_pixels(view, PROCESSORS[0]), copied, rtol=0, atol=0)


@pytest.mark.parametrize("height", [1, 3, 4])
def test_channels_are_never_guessed(height):
    frames = RNG.integers(0, 256, (3, height, 80, 3), dtype=np.uint8)
    assert frames_to_pixels(frames, PROCESSORS[0]).shape == (3, 3, 32, 24)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (FRAMES.astype(np.float32), "dtype float32.*uint8"),
        (torch.from_numpy(FRAMES), "Tensor.*numpy array"),
        (FRAMES[0], r"\(48, 80, 3\).*\(T, height, width, 3\)"),
        (FRAMES.transpose(0, 3, 1, 2), r"\(5, 3, 48, 80\)"),
        (FRAMES[..., :1], r"\(5, 48, 80, 1\)"),
        (FRAMES[:0], r"\(0, 48, 80, 3\).*at least 1"),
    ],
)
def test_bad_arrays(frames, message):
    with pytest.raises(BimbaError, match=message):
        frames_to_pixels(frames, PROCESSORS[0])
