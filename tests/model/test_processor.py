from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import IMAGE_SIZE, ascii_tokenizer, tiny_model
from transformers import SiglipImageProcessor, SiglipImageProcessorPil

from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.config import BimbaConfig
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
    with pytest.raises(BimbaError, match=r"array of uint8, RGB|\(T, height, width, 3\)"):
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
    processor.temporal_pooling, processor.newline_after_medium = 2, False
    processor.save_pretrained(tmp_path)
    again = BimbaProcessor.from_pretrained(tmp_path)
    processor.temporal_pooling, processor.newline_after_medium = 1, True
    assert (again.temporal_pooling, again.newline_after_medium) == (2, False)
    assert (again.patch_grid, again.num_frames) == (processor.patch_grid, processor.num_frames)
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    torch.testing.assert_close(again.pixel_values(frames(3)), processor.pixel_values(frames(3)))


# -- images ------------------------------------------------------------------------------------------------------


def image_processor(kind: type = SiglipImageProcessor):
    return kind(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})


@pytest.fixture(scope="module")
def seeing():
    return BimbaProcessor(image_processor(), ascii_tokenizer(), patch_grid=4)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(frames(1, height, width)[0])


def test_an_image_is_its_whole_and_its_tiles(seeing):
    white = Image.new("RGB", (2 * IMAGE_SIZE, IMAGE_SIZE // 2), "white")
    tiles = seeing.image_tiles(white)
    assert tiles.shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert (tiles[0] == 1).all()  # stretched to the square
    border = IMAGE_SIZE // 4
    assert (tiles[1:, :, border:-border] == 1).all()
    assert (tiles[1:, :, :border] == -1).all() and (tiles[1:, :, -border:] == -1).all()  # black above and below


def test_tiles_run_row_by_row(seeing):
    colours = np.array([[10, 20], [30, 40]], np.uint8).repeat(IMAGE_SIZE, 0).repeat(IMAGE_SIZE, 1)
    tiles = seeing.image_tiles(np.stack([colours] * 3, -1))
    assert [round(float((tile.mean() + 1) * 127.5)) for tile in tiles[1:]] == [10, 20, 30, 40]


def test_every_kind_of_picture(seeing):
    colour = picture(50, 40)
    tiles = seeing.image_tiles(colour)
    assert torch.equal(tiles, seeing.image_tiles(np.asarray(colour)))
    assert torch.equal(tiles, seeing.image_tiles(colour.convert("RGBA")))
    grey = colour.convert("L")
    assert torch.equal(seeing.image_tiles(grey), seeing.image_tiles(grey.convert("RGB")))
    thin = frames(1, height=3, width=40)[0]  # three rows are no channels
    assert torch.equal(seeing.image_tiles(thin), seeing.image_tiles(Image.fromarray(thin)))


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_tiles_are_the_same_whatever_resizes_frames(seeing, backend):
    other = BimbaProcessor(image_processor(), seeing.tokenizer, patch_grid=4, image_backend=backend)
    assert torch.equal(other.image_tiles(picture(50, 40)), seeing.image_tiles(picture(50, 40)))


@pytest.mark.parametrize(
    ("wrong", "received"),
    [(np.zeros((4, 4, 3)), "float64"), (np.zeros((4, 4), np.uint8), r"\(4, 4\)"), ("a.png", "str")],
)
def test_wrong_images(seeing, wrong, received):
    with pytest.raises(BimbaError, match=f"{received}.*expected a PIL image"):
        seeing.image_tiles(wrong)


def test_a_tag_becomes_as_many_placeholders_as_the_image_makes_tokens(seeing):
    model, _ = tiny_model()
    media = {"videos": [frames(4)], "images": [picture(70, 40), picture(20, 30)]}
    inputs = seeing(["a<image>b<video>", "<image>c"], **media, padding=True)
    assert inputs["image_sizes"] == [(70, 40), (20, 30)]
    image_token_id = seeing.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    counts = (inputs["input_ids"] == image_token_id).sum(1).tolist()
    images = model.encode_images(inputs["pixel_values_images"], inputs["image_sizes"])
    assert counts == [seeing.num_image_tokens((70, 40)), seeing.num_image_tokens((20, 30))] == [*map(len, images)]
    assert (inputs["input_ids"] == seeing.video_token_id).sum(1).tolist() == [seeing.num_video_tokens(4), 0]


def test_text_alone_brings_no_pixels(seeing):
    assert set(seeing("Hello")) == {"input_ids", "attention_mask"}


def test_tags_and_images_must_match(seeing):
    with pytest.raises(BimbaError, match="2 <image> tags for 1 images; give one tag per image"):
        seeing("<image><image>", images=[picture(20, 30)])


def test_images_need_their_token(seeing, monkeypatch):
    monkeypatch.setattr(seeing, "image_token", "<|image|>")
    with pytest.raises(BimbaError, match=r"tokenizer has no <\|image\|>"):
        seeing("<image>", images=[picture(20, 30)])
    assert set(seeing("Hello")) == {"input_ids", "attention_mask"}


# -- what frames are resized with --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SiglipImageProcessor, SiglipImageProcessorPil])
def test_the_image_processor_stays_as_it_was_made_even_when_saved(seeing, tmp_path, kind):
    made = BimbaProcessor(image_processor(kind), seeing.tokenizer, image_grid_pinpoints=[[32, 64]], image_max_tiles=4)
    made.save_pretrained(tmp_path)
    again = BimbaProcessor.from_pretrained(tmp_path)
    assert type(made.image_processor) is type(again.image_processor) is kind
    assert again.anyres == made.anyres
    assert torch.equal(made.pixel_values(frames(2)), again.pixel_values(frames(2)))


def test_one_image_processor_for_another(seeing):
    fast = BimbaProcessor(image_processor(SiglipImageProcessorPil), seeing.tokenizer, image_backend="torchvision")
    assert torch.equal(fast.pixel_values(frames(2)), seeing.pixel_values(frames(2)))
    assert isinstance(fast.image_processor, SiglipImageProcessor)


def test_unknown_backend(seeing):
    with pytest.raises(BimbaError, match="image_backend is 'opencv'; expected one of pil, torchvision"):
        BimbaProcessor(image_processor(), seeing.tokenizer, image_backend="opencv")
    with pytest.raises(BimbaError, match="image_backend is 'opencv'; expected one of pil, torchvision"):
        BimbaProcessor.of(tiny_model()[0].config, seeing.tokenizer, image_backend="opencv")


@pytest.mark.parametrize("compressor", [None, {"name": "mamba"}, {"name": "pool", "reduction": [2, 4]}])
def test_the_processor_of_a_configuration_counts_as_its_model_does(seeing, compressor):
    base, _ = tiny_model()
    changes = {"newline_position": "frame", "num_frames": 6, "newline_after_medium": False, "image_max_tiles": 4}
    config = BimbaConfig.from_dict(
        {**base.config.to_dict(), **changes, "temporal_pooling": 2, "compressor": compressor}
    )
    made = BimbaProcessor.of(config, seeing.tokenizer)
    assert {name: getattr(made, name) for name in changes} == changes
    assert made.anyres == config.anyres
    pixels = made.pixel_values(frames(6))
    with torch.no_grad():
        assert made.num_video_tokens(6) == len(BimbaForConditionalGeneration(config).encode_video(pixels))
