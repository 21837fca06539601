"""Images and frames against the original: pixels to the bit, tiles, and how many tokens they become."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from bimba.checkpoint import load_pretrained, save_pretrained
from bimba.model.processor import BimbaProcessor
from tests.golden.originals import GOLDEN, MEDIUM, TOLERANCE, deviation, full_checkpoint, read_case


@pytest.fixture(scope="module")
def processor() -> BimbaProcessor:
    return load_pretrained(full_checkpoint())[1]


@pytest.fixture(scope="module")
def pictures() -> dict[str, Tensor]:
    return load_file(GOLDEN / "golden_image_processor_56.safetensors")


def test_frames_have_the_originals_pixels(processor, pictures):
    pixels = processor.pixel_values(pictures["in.frames_uint8"].numpy())
    assert torch.equal(pixels, pictures["out.pixel_values"])


def test_a_saved_checkpoint_keeps_them(pictures, tmp_path):
    save_pretrained(*load_pretrained(full_checkpoint()), tmp_path / "saved")
    pixels = load_pretrained(tmp_path / "saved")[1].pixel_values(pictures["in.frames_uint8"].numpy())
    assert torch.equal(pixels, pictures["out.pixel_values"])


def test_torchvisions_pixels_are_hardly_ever_off(processor, pictures):
    fast = BimbaProcessor(processor.image_processor, processor.tokenizer, image_backend="torchvision")
    off = (fast.pixel_values(pictures["in.frames_uint8"].numpy()) - pictures["out.pixel_values"]).abs()
    assert off.max() < 1.01 / 127.5  # one of 256 levels
    assert (off > 1e-6).float().mean() < 0.01


def test_tiles_have_the_originals_pixels(processor, pictures):
    picture = Image.fromarray(pictures["in.image_small_uint8"].numpy())
    tiles = processor.image_tiles(picture)
    assert torch.equal(tiles[:3], pictures["out.anyres_small_first3"])
    rounded = load_file(GOLDEN / "inputs.safetensors")["img_small_tiles"]  # all of them, in 16 bits
    assert torch.equal(tiles.half(), rounded)


@pytest.mark.parametrize("name", ["img56_small", "img56_large", "img56_square"])
def test_an_image_becomes_as_many_tiles_and_tokens(processor, name):
    case = read_case(name)
    size = case.meta["image_sizes"][0]
    rows, columns = processor.anyres.tile_grid(size)
    assert [columns, rows] == case.meta["grid_wh"]
    assert 1 + rows * columns == case.meta["n_tiles"] == len(case.pixels(0))
    added = case["inputs_embeds"].shape[1] - case["in.input_ids"].shape[1]
    assert processor.num_image_tokens(size) == 1 + added  # the one that stood for the image is gone


@pytest.mark.parametrize("name", ["img56_small", "img56_large", "img56_square", "img56_single_tile"])
def test_the_tokens_of_an_image(name):
    case = read_case(name)
    model, _ = case.model()
    with torch.no_grad():
        tokens = model.encode_image(case.pixels(0), case.meta["image_sizes"][0])
    start = int((case["in.input_ids"][0] == MEDIUM).nonzero())
    expected = case["inputs_embeds"][0, start : start + len(tokens)]
    assert deviation(tokens, expected) < TOLERANCE["inputs_embeds"]


def test_the_processor_writes_the_originals_prompt(processor, pictures):
    """From text and a picture to the ids and pixels of the case ``img56_small``."""
    case = read_case("img56_small")
    before, after = (processor.tokenizer.decode(part) for part in _around(case["in.input_ids"][0]))
    picture = Image.fromarray(pictures["in.image_small_uint8"].numpy())
    inputs = processor(f"{before}<image>{after}", images=[picture])
    image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    text = inputs["input_ids"][inputs["input_ids"] != image_token_id]
    assert torch.equal(text, torch.cat(_around(case["in.input_ids"][0])))
    assert inputs["input_ids"].shape[1] == case["inputs_embeds"].shape[1]
    assert inputs["image_sizes"] == [tuple(case.meta["image_sizes"][0])]
    assert torch.equal(inputs["pixel_values_images"][0].half().float(), case.pixels(0))


def _around(ids: Tensor) -> tuple[Tensor, Tensor]:
    place = int((ids == MEDIUM).nonzero())
    return ids[:place], ids[place + 1 :]
