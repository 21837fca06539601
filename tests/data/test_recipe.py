"""The two recipes: their table, and what a user sees of them. That ``original`` is the original: tests/golden."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_checkpoint import ascii_tokenizer

from bimba.data.datamodule import VideoQADataModule
from bimba.data.dataset import VideoQADataset
from bimba.data.recipe import RECIPES, recipe_named, table_rows
from bimba.data.sampler import EpochSampler
from bimba.data.sampling import original_step
from bimba.data.tokenize import IGNORE_INDEX, tokenize_conversation
from bimba.types import BadSample, BimbaError
from tests.data.files import GOLDEN, numbered_frames, write_video

ROOT = Path(__file__).parents[2]
ORIGINAL, DEFAULT = RECIPES["original"], RECIPES["default"]


def test_the_table_in_the_docs_is_the_dataclass():
    lines = (ROOT / "docs" / "recipes.md").read_text().splitlines()
    start = lines.index(table_rows()[0])
    assert lines[start : start + len(table_rows())] == table_rows()
    assert lines[start - 2].startswith("| key | `default` | `original` |")


def test_the_recipes_differ_in_every_field():
    assert all(getattr(ORIGINAL, name) != getattr(DEFAULT, name) for name in ORIGINAL.__dataclass_fields__)


def test_an_unknown_recipe():
    with pytest.raises(BimbaError, match=r"data\.recipe is 'orginal'; expected one of default, original"):
        recipe_named("orginal")


def test_labels_of_answers_need_turns_in_parts():
    with pytest.raises(BimbaError, match="tokenisation 'whole' cannot have labels 'answers'"):
        replace(ORIGINAL, labels="answers")


def test_markup_may_be_learned_without_the_other_defects():
    tokenizer = ascii_tokenizer()
    turns = [{"from": "human", "value": "Why <|im_end|>?"}, {"from": "gpt", "value": "So."}]
    sample = tokenize_conversation(turns, tokenizer, [], recipe=replace(DEFAULT, labels="markup"))
    learned = tokenizer.decode(sample["labels"][sample["labels"] != IGNORE_INDEX])
    system, user = "<|im_start|>\n<|im_end|>\n", "<|im_start|>\n<|im_end|>\n"
    assert learned == f"{system}{user}<|im_start|>assistant\nSo.<|im_end|>\n"


def test_a_tag_in_an_answer_is_a_medium_only_in_the_original():
    tokenizer = ascii_tokenizer()
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "An <image>"}]
    assert "An <image>" in tokenizer.decode(tokenize_conversation(turns, tokenizer, [2])["input_ids"])
    with pytest.raises(BimbaError, match="more <image> tags than media"):
        tokenize_conversation(turns, tokenizer, [2], recipe=ORIGINAL)


# -- on videos ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_video(tmp_path / "good.mp4", numbered_frames(16))
    write_annotations(tmp_path, ["good.mp4"])
    return tmp_path


def write_annotations(folder: Path, videos: list[str], words: list[int] | None = None) -> None:
    rows = [
        {
            "video": video,
            "conversations": [
                {"from": "human", "value": "<image>\n" + "why " * (words[i] if words else 1)},
                {"from": "gpt", "value": "So."},
            ],
        }
        for i, video in enumerate(videos)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))


def test_the_time_instruction_is_the_originals_only(folder, processor):
    def text(recipe):
        sample = VideoQADataset(folder / "rows.json", folder, processor, 4, 1000, recipe)[0]
        return processor.tokenizer.decode(sample["input_ids"])

    assert "These frames are located at 0.00s,0.62s,1.25s,1.88s.Please answer" in text(ORIGINAL)
    assert "located" not in text(DEFAULT)


def test_without_repeats_a_second_epoch_is_as_the_first(folder, processor):
    dataset = VideoQADataset(
        folder / "rows.json", folder, processor, 4, 1000, replace(ORIGINAL, instruction_repeats=False)
    )
    assert dataset[0]["input_ids"].tolist() == dataset.sample(0, epoch=1)["input_ids"].tolist()


@pytest.mark.parametrize(("fps", "step"), [(0.51, 1), (1.5, 2), (2.5, 2), (29.97, 30)])
def test_steps_are_rounded_half_to_even(fps, step):
    assert original_step(fps) == step


@pytest.mark.parametrize("fps", [0.5, 0.25, 0.0, float("nan")])
def test_a_slow_video_is_refused(fps):
    with pytest.raises(BimbaError, match=rf"has {fps:g} frames per second.*data\.recipe=default"):
        original_step(fps)


def test_a_slow_video_is_a_bad_sample_of_the_original_only(tmp_path, processor):
    write_annotations(tmp_path, ["n6_f0p25.mp4"])

    def sample(recipe):
        return VideoQADataset(tmp_path / "rows.json", GOLDEN / "videos", processor, 4, 1000, recipe)[0]

    refused = sample(ORIGINAL)
    assert isinstance(refused, BadSample)
    assert refused.error.startswith(f"{GOLDEN / 'videos' / 'n6_f0p25.mp4'}: The video has 0.25 frames per second")
    assert not isinstance(sample(DEFAULT), BadSample)


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_original_deals_each_step_to_batches_of_equal_length(folder, processor, world_size, monkeypatch):
    words = [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]
    write_annotations(folder, ["good.mp4"] * len(words), words)
    module = VideoQADataModule(
        str(folder / "rows.json"), str(folder), processor, 4, 1000, global_batch_size=8, batch_size=4, recipe="original"
    )
    monkeypatch.setattr(VideoQADataModule, "_world_size", world_size)
    module.setup()
    sampler = module.train_dataloader().sampler
    mine = []
    for sampler.rank in range(world_size):
        mine.append(list(sampler))
    batches = [rank[start : start + 4] for rank in mine for start in range(0, len(rank), 4)]
    assert len(batches) == 2  # one step: the last four of twelve samples make none
    lengths = [sum(words[i] for i in batch) for batch in batches]
    assert abs(lengths[0] - lengths[1]) <= 8  # of about 90
    step = sorted(index for batch in batches for index in batch)
    sampler.set_epoch(1)
    assert sorted(sampler) != step


def test_the_default_order_knows_no_lengths(folder, processor):
    write_annotations(folder, ["good.mp4"] * 8)
    module = VideoQADataModule(
        str(folder / "rows.json"), str(folder), processor, 4, 1000, global_batch_size=8, batch_size=4
    )
    module.setup()
    assert list(module.train_dataloader().sampler) == list(EpochSampler(8, 8, shuffle=True))
