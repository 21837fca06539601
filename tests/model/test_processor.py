from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_checkpoint import IMAGE_SIZE, tiny_model

from bimba.model.processor import BimbaProcessor
from bimba.types import BimbaError


@pytest.fixture(scope="module")
def processor():
    return tiny_model()[1]


def frames(num_frames: int, height: int = 20, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def test_pixels_are_resized_and_normalised(processor):
    pixels = processor.pixel_values(np.full((2, 20, 40, 3), 255, np.uint8))
    assert pixels.shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, torch.ones_like(pixels))  # (1 - 0.5) / 0.5


@pytest.mark.parametrize("wrong", [np.zeros((2, 20, 40, 3), np.float32), np.zeros((20, 40, 3), np.uint8)])
def test_wrong_frames(processor, wrong):
    with pytest.raises(BimbaError, match="uint8 RGB"):
        processor.pixel_values(wrong)


def test_a_tag_becomes_as_many_placeholders_as_the_model_makes_tokens(processor):
    model, _ = tiny_model()
    inputs = processor("<|im_start|><video>What?", [frames(4)])
    count = int((inputs["input_ids"] == processor.video_token_id).sum())
    assert count == processor.num_video_tokens(4) == len(model.encode_video(inputs["pixel_values_videos"][0]))


def test_tags_and_videos_must_match(processor):
    with pytest.raises(BimbaError, match="1 <video> tags for 2 videos"):
        processor("<video>", [frames(4), frames(4)])


def test_round_trip(processor, tmp_path):
    processor.temporal_pooling = 2
    processor.save_pretrained(tmp_path)
    again = BimbaProcessor.from_pretrained(tmp_path)
    processor.temporal_pooling = 1
    assert (again.temporal_pooling, again.patch_grid, again.num_frames) == (
        2,
        processor.patch_grid,
        processor.num_frames,
    )
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    torch.testing.assert_close(again.pixel_values(frames(3)), processor.pixel_values(frames(3)))
