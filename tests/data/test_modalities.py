"""Samples of everything that a mixture holds: videos, folders of frames, images, several images, texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bimba.data.collate import collate
from bimba.data.datamodule import VideoQADataModule, mixture_data
from bimba.data.dataset import VideoQADataset
from bimba.data.mixture import read_mixture
from bimba.data.recipe import RECIPES
from bimba.data.tokenize import IGNORE_INDEX
from bimba.training.trainable import part_of
from bimba.types import BadSample, BimbaError
from tests.data import layout
from tests.data.layout import talk
from tests.training.fakes import IMAGE_SIZE, tiny_module


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("LLaVA-Video-178K")
    layout.make(folder)
    return folder


@pytest.fixture
def dataset(root, processor) -> VideoQADataset:
    return VideoQADataset(read_mixture(root / "mixture.yaml", root), None, processor, 4, 1000)


def open_rows(folder: Path, rows: list[dict[str, Any]], processor, **options: Any) -> VideoQADataset:
    (folder / "rows.json").write_text(json.dumps(rows))
    return VideoQADataset(folder / "rows.json", folder, processor, **{"num_frames": 4, "max_length": 1000, **options})


def test_every_kind_of_row(dataset, processor):
    tokenizer = processor.tokenizer
    video_token, image_token = tokenizer.convert_tokens_to_ids(["<|video_pad|>", "<|image_pad|>"])
    expected = {  # videos, images (tiles of each), tokens of each kind
        "video": ([(4, 3, 16, 16)], [], 2, 0),
        "image": ([], [(2, 3, 16, 16)], 0, 3),
        "multi_image": ([], [(1, 3, 16, 16)] * 2, 0, 4),
        "text": ([], [], 0, 0),
    }
    for i in range(len(dataset)):
        sample = dataset[i]
        videos, images, num_video, num_image = expected[sample["modality"]]
        assert [tuple(v.shape) for v in sample["pixel_values_videos"]] == videos
        assert [tuple(v.shape) for v in sample["pixel_values_images"]] == images
        assert len(sample["image_sizes"]) == len(images)
        assert int((sample["input_ids"] == video_token).sum()) == num_video
        assert int((sample["input_ids"] == image_token).sum()) == num_image
        assert (sample["labels"] != IGNORE_INDEX).any()
    assert dataset[7]["image_sizes"] == [(40, 30), (30, 64)]
    assert dataset[6]["id"] == "0"
    assert dataset[0]["source"] == layout.YOUTUBE
    assert {dataset[i]["source"] for i in range(len(dataset))} == set(layout.NUM_ROWS)


def test_where_media_lie(dataset, root):
    assert dataset.media_paths(0) == ("video", [root / layout.YOUTUBE / "liwei_youtube_videos/videos/0.mp4"])
    assert dataset.media_paths(7) == ("image", [root / "pictures/a.png", root / "pictures/b.png"])
    assert dataset.media_paths(11) == ("text", [])
    assert dataset.where(6) == f"{root / 'pictures.jsonl'}, line 1"


def test_multi_turn_text_is_all_learned(dataset, processor):
    sample = dataset[0]
    learned = sample["labels"][sample["labels"] != IGNORE_INDEX]
    assert processor.tokenizer.decode(learned) == "Stripes.<|im_end|>Black and white.<|im_end|>"


def test_media_without_a_folder(root, processor):
    with pytest.raises(BimbaError, match=r"names videos, and nobody says .* Give data\.video_root, or video_folder"):
        VideoQADataset(read_mixture(root / "mixture.yaml"), None, processor, 4, 1000)
    texts = [{"json_path": str(root / "texts.json")}]
    assert len(VideoQADataset(read_mixture(texts), None, processor, 4, 1000)) == 5
    pictures = [{"json_path": str(root / "pictures.jsonl")}]
    with pytest.raises(BimbaError, match=r"names images, and nobody says .* Give data\.image_root"):
        VideoQADataset(read_mixture(pictures), None, processor, 4, 1000)
    own_root = read_mixture(pictures, image_root=root / "pictures")
    assert VideoQADataset(own_root, None, processor, 4, 1000)[0]["modality"] == "image"


def test_images_that_cannot_be_read_are_bad_samples(tmp_path, processor):
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("damaged")
    rows = [
        {"image": ["good.png", "bad.png"], "conversations": talk("<image> <image>", "So.")},
        {"image": "missing.png", "conversations": talk("<image>", "So.")},
        {"image": "good.png", "conversations": talk("<image>", "So.")},
    ]
    dataset = open_rows(tmp_path, rows, processor)
    for i, name in enumerate(("bad.png", "missing.png")):
        sample = dataset[i]
        assert isinstance(sample, BadSample)
        assert sample.path == str(tmp_path / name)
        assert sample.error.startswith(sample.path)
    assert not isinstance(dataset[2], BadSample)


def test_a_model_without_images_says_so_at_the_start(root, processor):
    class VideosOnly:
        tokenizer, image_processor = processor.tokenizer, processor.image_processor
        num_video_tokens = processor.num_video_tokens

        def num_image_tokens(self, size, whole=False):
            raise BimbaError("This model takes videos only")

    mixture = read_mixture([{"json_path": str(root / "pictures.jsonl")}], root / "pictures")
    with pytest.raises(BimbaError, match="This model takes videos only"):
        VideoQADataset(mixture, None, VideosOnly(), 4, 1000)


def test_several_videos_in_a_row(root, tmp_path, processor):
    clip = root / layout.YOUTUBE / "liwei_youtube_videos" / "videos" / "0.mp4"
    (tmp_path / "0.mp4").symlink_to(clip)
    rows = [{"video": ["0.mp4", "0.mp4"], "conversations": talk("<image> or <image>?", "Neither.")}]
    sample = open_rows(tmp_path, rows, processor)[0]
    assert len(sample["pixel_values_videos"]) == 2
    with pytest.raises(BimbaError, match="several videos, and the recipe's time instruction is about one"):
        open_rows(tmp_path, rows, processor, recipe=RECIPES["original"])


def test_turns_are_dropped_from_the_end_of_a_long_conversation(tmp_path, processor):
    rows = [{"id": 1, "conversations": talk("One?", "1.", "Two?", "2.", "Three?", "3.")}]
    whole = open_rows(tmp_path, rows, processor)[0]["input_ids"]
    text = processor.tokenizer.decode
    skipped = open_rows(tmp_path, rows, processor, max_length=len(whole) - 1)[0]
    assert isinstance(skipped, BadSample)
    assert skipped.path == f"{tmp_path / 'rows.json'}, row 0"
    cut = open_rows(tmp_path, rows, processor, max_length=len(whole) - 1, too_long="drop_turns")[0]["input_ids"]
    assert text(whole).startswith(text(cut))
    assert text(cut).endswith("2.<|im_end|>\n")
    shortest = open_rows(tmp_path, rows, processor, max_length=len(whole) // 2 + 5, too_long="drop_turns")
    assert text(shortest[0]["input_ids"]).endswith("1.<|im_end|>\n")
    assert isinstance(open_rows(tmp_path, rows, processor, max_length=9, too_long="drop_turns")[0], BadSample)


def test_a_medium_is_never_cut(tmp_path, processor):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    turns = talk("<image>\nFirst?", "1.", "And <image>?", "2.")
    rows = [{"image": ["a.png", "a.png"], "conversations": turns}]
    length = len(open_rows(tmp_path, rows, processor)[0]["input_ids"])
    assert isinstance(open_rows(tmp_path, rows, processor, max_length=length - 1, too_long="drop_turns")[0], BadSample)
    with pytest.raises(BimbaError, match="too_long is 'cut'; expected one of skip, drop_turns"):
        open_rows(tmp_path, rows, processor, too_long="cut")


# -- batches -----------------------------------------------------------------------------------------------------------


def module(root: Path, processor, **options: Any) -> VideoQADataModule:
    data = mixture_data(
        str(root / "mixture.yaml"), str(root), processor=processor,
        **{"num_frames": 4, "max_length": 1000, "global_batch_size": 4, "batch_size": 4, "seed": 3, **options},
    )  # fmt: skip
    data.setup()
    return data


def test_a_batch_of_everything(root, processor):
    batches = list(module(root, processor, global_batch_size=12, batch_size=12).train_dataloader())
    assert len(batches) == 1
    (batch,) = batches
    assert batch["bad_samples"] == []
    assert sorted(batch["modalities"]) == ["image"] * 3 + ["multi_image"] + ["text"] * 2 + ["video"] * 6
    assert len(batch["pixel_values_videos"]) == 6
    assert len(batch["pixel_values_images"]) == len(batch["image_sizes"]) == 5
    assert len(batch["ids"]) == len(batch["sources"]) == len(batch["input_ids"]) == 12


def test_steps_of_one_modality(root, processor):
    data = module(root, processor, sample_order="by_modality_and_length", global_batch_size=2, batch_size=2)
    steps = [set(batch["modalities"]) for batch in data.train_dataloader()]
    assert len(steps) == 6
    assert sum("text" in step and len(step) > 1 for step in steps) <= 1  # the rests of both share the last


def test_lengths_are_negative_without_a_medium(dataset):
    assert (dataset.lengths[:10] > 0).all()
    assert dataset.lengths[10:].tolist() == [-3, -3]


def test_unknown_options(root, processor):
    for option in ("short_videos", "too_long", "sample_order", "bad_rows", "duplicate_ids"):
        with pytest.raises(BimbaError, match=rf"data\.{option} is 'x'; expected one of"):
            module(root, processor, **{option: "x"})


def test_bad_rows_may_be_skipped(tmp_path, processor):
    rows = [{"id": 1, "conversations": talk("A?", "B.")}, {"id": 1, "conversations": talk("A?", "C.")}, {"id": 2}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    mixture = [{"json_path": str(tmp_path / "rows.json")}]
    options: dict[str, Any] = {
        "processor": processor, "num_frames": 4, "max_length": 99, "global_batch_size": 2, "batch_size": 2,
    }  # fmt: skip
    with pytest.raises(BimbaError, match=r"row 2: 'conversations' is missing(.|\n)*row 1: the id 1 is that of row 0"):
        mixture_data(mixture, **options).setup()
    data = mixture_data(mixture, **options, bad_rows="skip", duplicate_ids="allow")
    data.setup()
    assert len(data.dataset) == 2


# -- batches of a number of tokens -------------------------------------------------------------------------------------


def test_batches_within_a_budget(root, processor):
    data = module(root, processor, max_batch_tokens=400, batch_size=4, global_batch_size=4)
    tokens, kinds = data.dataset.estimated_tokens(), data.dataset.modalities
    batches = data.train_dataloader().batch_sampler
    epochs = []
    for epoch in (0, 1):
        batches.sampler.set_epoch(epoch)
        epochs.append([tuple(batch) for batch in batches])
    assert sorted(i for batch in epochs[0] for i in batch) == list(range(12))
    for batch in epochs[0]:
        assert len(batch) <= 4
        assert len(batch) * tokens[list(batch)].max() <= 400
        assert len(set(kinds[list(batch)])) == 1
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])  # the same batches in another order
    assert sum(len(batch["input_ids"]) for batch in data.train_dataloader()) == 12


def test_estimates_are_about_right_and_media_count(dataset):
    tokens = dataset.estimated_tokens()
    text = 3 * 6 + np.ceil(len("Say 3.3") / 3)  # two turns and the system's
    assert tokens[10] == text
    assert tokens[6] - (5 * 6 + np.ceil(len("<image>\nWhat is it?Noise.Sure?Yes.") / 3)) == 3  # an image of the stub
    assert len(tokens) == 12


def test_a_budget_too_small(root, processor):
    with pytest.raises(BimbaError, match=r"data\.max_batch_tokens is 20, and 12 samples are longer by themselves"):
        module(root, processor, max_batch_tokens=20).train_dataloader()


# -- through the model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modalities", "parts"),
    [
        (["video", "image", "multi_image", "text"], {"lora", "projector", "compressor"}),
        (["image", "multi_image", "text"], {"lora", "projector"}),  # no video: images pass no compressor
        (["text", "text"], {"lora"}),
    ],
)
def test_every_batch_trains_the_parts_that_it_passes(root, modalities, parts):
    learner = tiny_module(model={"compressor": {"name": "mamba"}})
    dataset = VideoQADataset(read_mixture(root / "mixture.yaml", root), None, learner.processor, 4, 4000)
    found = {"video": 0, "image": 6, "multi_image": 7, "text": 10}
    batch = collate([dataset[found[modality]] for modality in modalities], pad_token_id=0)
    assert batch["modalities"] == modalities
    loss = learner(batch)[0].sum()
    loss.backward()
    assert torch.isfinite(loss)
    gradients = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert {part_of(name.removeprefix("model.")) for name, g in gradients.items() if g.abs().sum() > 0} == parts


def test_several_images_are_single_tiles_of_the_real_processor(root):
    processor = tiny_module().processor
    dataset = VideoQADataset(read_mixture(root / "mixture.yaml", root), None, processor, 4, 4000)
    several = dataset[7]
    assert [tuple(tiles.shape) for tiles in several["pixel_values_images"]] == [(1, 3, IMAGE_SIZE, IMAGE_SIZE)] * 2
    whole = processor.image_tiles(Image.new("RGB", (40, 20), (255, 255, 255)), whole=True)[0, 0]
    assert whole[IMAGE_SIZE // 2].min() == 1  # the picture, white
    assert whole[0].abs().max() < 0.01  # above it the mean, which is zero
    tokens = processor.num_image_tokens((40, 20), whole=True)
    assert (several["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum() == 2 * tokens
    assert tokens == (IMAGE_SIZE // 8) ** 2 + 1
