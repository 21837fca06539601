"""The recipe ``original`` against what the original's own code made of the same conversations and videos."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, SiglipImageProcessorPil

from bimba.checkpoint import load_pretrained
from bimba.data.collate import collate
from bimba.data.dataset import VideoQADataset
from bimba.data.order import by_modality_and_length
from bimba.data.prompt import MEDIUM_TAG, multiple_choice, time_instruction, with_medium
from bimba.data.recipe import RECIPES, Recipe
from bimba.data.sampling import original_frames
from bimba.data.tokenize import VIDEO_TOKEN, tokenize_conversation, tokenize_prompt
from bimba.data.turns import with_time_instruction
from bimba.data.video import read_frames
from bimba.inference import VideoQA
from bimba.training.optim import OptimizerSettings, rate_factor
from bimba.types import BimbaError

TEXT = Path(__file__).parent / "text"
BASE = Path(__file__).parent / "model" / "ckpt_56_base_nocompressor"
ORIGINAL = RECIPES["original"]
MEDIUM = -200  # how the original writes one medium, whatever it is


def load(name: str) -> Any:
    return json.loads((TEXT / f"{name}.json").read_text())


PREPROCESS, ITEMS, FRAMES, ORDERS, PROMPTS = map(
    load, ("preprocess_qwen", "dataset_items", "frame_sampling", "sampler_lr", "prompts")
)


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(TEXT / "tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": [VIDEO_TOKEN]}, replace_extra_special_tokens=False)
    return tokenizer


def as_golden(ids: torch.Tensor) -> list[int]:
    return [MEDIUM if i == tokenizer().convert_tokens_to_ids(VIDEO_TOKEN) else i for i in ids.tolist()]


def media(conversation: list[dict[str, str]]) -> list[int]:
    """One token for each tag."""
    return [1] * sum(turn.get("value", "").count(MEDIUM_TAG) for turn in conversation)


def check_sample(golden: dict[str, Any], conversation: Any, counts: list[int]) -> None:
    sample = tokenize_conversation(conversation, tokenizer(), counts, recipe=ORIGINAL)
    assert as_golden(sample["input_ids"]) == golden["input_ids"]
    assert sample["labels"].tolist() == golden["labels"]


# -- conversations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREPROCESS["preprocess_qwen"])
def test_conversations(name):
    golden = PREPROCESS["preprocess_qwen"][name]
    check_sample(golden, golden["conversation"], media(golden["conversation"]) if golden["has_image"] else [])


@pytest.mark.parametrize("name", PREPROCESS["preprocess_multimodal_then_preprocess"])
def test_where_the_medium_stands(name):
    golden = PREPROCESS["preprocess_multimodal_then_preprocess"][name]
    conversation = [{"from": "human", "value": golden["value"]}, {"from": "gpt", "value": "x"}]
    check_sample(golden, conversation, media(conversation))


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_a_conversation_to_be_continued():
    golden = PROMPTS["conv_qwen_1_5_multiturn"]
    turns = [("human", "<image>\nhello"), ("gpt", "hi there"), ("human", "again?")]
    ids = as_golden(tokenize_prompt([{"from": who, "value": text} for who, text in turns], tokenizer(), [1]))
    assert ids == golden["input_ids"]
    pieces = [MEDIUM_TAG if i == MEDIUM else tokenizer().decode([i]) for i in ids]
    assert "".join(pieces) == golden["prompt"]


@cache
def asked_as_the_original() -> VideoQA:
    """The original's base, asked as its evaluation asks."""
    return VideoQA(*load_pretrained(BASE))


# Two data sets of the original have prompts of their own; neither is one of the seven benchmarks.
MULTIPLE_CHOICE = [c for c in PROMPTS["get_prompt"] if c["dataset"] in ("VideoMME", "NextQA", "EgoSchema")]


@pytest.mark.parametrize("golden", MULTIPLE_CHOICE, ids=lambda c: f"{c['dataset']}-{len(c['sample']['candidates'])}")
def test_multiple_choice(golden):
    options = [candidate.split(". ", 1)[1] for candidate in golden["sample"]["candidates"]]
    if "error" in golden and len(options) > 5:  # the original has no words for so many; ours go on in its manner
        assert "A, B, C, D, E, or F" in multiple_choice(golden["sample"]["question"], options)
        return
    if "error" in golden:
        with pytest.raises(BimbaError, match=f"Got {len(options)} options"):
            multiple_choice(golden["sample"]["question"], options)
        return
    prompt = multiple_choice(golden["sample"]["question"], options)
    if times := golden["kwargs"]:  # its --use_time_ins
        times_s = [float(time.removesuffix("s")) for time in times["frame_time"].split(",")]
        prompt = f"{time_instruction(times['video_time'], times_s)}\n{prompt}"
    if MEDIUM_TAG in prompt:  # the original makes a second medium of it, and then has none to put there
        with pytest.raises(BimbaError, match="more <image> tags than media"):
            asked_as_the_original().tokenize(prompt, num_video_tokens=1)
        question = [{"from": "human", "value": with_medium(prompt, newline=ORIGINAL.asks_with_newline)}]
        ids = tokenize_prompt(question, tokenizer(), media(question))
    else:
        ids = asked_as_the_original().tokenize(prompt, num_video_tokens=1)
    assert as_golden(ids) == golden["input_ids"]


# -- frames ------------------------------------------------------------------------------------------------------------


@cache
def facts(video: str) -> tuple[int, float]:
    """Number of frames, and frames per second."""
    frames = read_frames(TEXT / "videos" / f"{video}.mp4", 1)
    return frames.num_total, frames.average_fps


def sampled(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    most, rate = ("frames_upbound", "video_fps") if "frames_upbound" in row else ("max_frames_num", "fps")
    return original_frames(*facts(row["video"]), row[most], row[rate], row["force_sample"])


def test_every_row_of_frame_sampling_is_there():
    assert [len(FRAMES[part]) for part in ("training", "inference")] == [168, 28]


@pytest.mark.parametrize("part", ["training", "inference"])
def test_frames(part):
    for row in FRAMES[part]:
        if "error" in row:
            with pytest.raises(BimbaError, match="frames per second"):
                sampled(row)
            continue
        total, fps = facts(row["video"])
        assert (total, fps, total / fps) == (row["total_frame_num"], row["avg_fps"], row["video_time"])
        indices, times_s = sampled(row)
        assert indices.tolist() == row["frame_idx"]
        assert ",".join(f"{time_s:.2f}s" for time_s in times_s) == row["frame_time"]


# -- the data set ------------------------------------------------------------------------------------------------------

SIDE = 56
PROCESSOR: Any = SimpleNamespace(
    tokenizer=tokenizer(),
    image_processor=SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}),
    num_video_tokens=lambda num_frames: 1,
)
VIDEO_ROWS = [row for row in ITEMS["data"] if "video" in row]


def open_items(tmp_path: Path, recipe: Recipe = ORIGINAL) -> VideoQADataset:
    (tmp_path / "rows.json").write_text(json.dumps(VIDEO_ROWS))
    return VideoQADataset(tmp_path / "rows.json", TEXT / "videos", PROCESSOR, 4, max_length=1000, recipe=recipe)


@pytest.mark.parametrize("golden", ITEMS["samples"], ids=lambda g: f"{g['id']}-{g['add_time_instruction']}")
def test_samples_of_all_its_settings(golden):
    row = ITEMS["data"][golden["index"]]
    turns = row["conversations"]
    if "video" in row and golden["add_time_instruction"]:
        total, fps = facts(Path(row["video"]).stem)
        _, times_s = original_frames(total, fps, golden["frames_upbound"], force=golden["force_sample"])
        turns = with_time_instruction(turns, total / fps, times_s)
    assert turns[0]["value"] == golden["first_human_value"]
    check_sample(golden, turns, media(turns))


@pytest.mark.parametrize("timed", [True, False])
def test_samples_of_the_data_set(timed, tmp_path):
    dataset = open_items(tmp_path, replace(ORIGINAL, time_instruction=timed))
    for golden in ITEMS["samples"]:
        if golden["modality"] == "video" and golden["force_sample"] and golden["add_time_instruction"] == timed:
            sample = dataset[golden["index"]]
            assert as_golden(sample["input_ids"]) == golden["input_ids"]
            assert sample["labels"].tolist() == golden["labels"]
            assert list(sample["pixel_values_videos"][0].shape) == golden["image_shape"]


def test_each_epoch_stacks_a_time_instruction(tmp_path):
    dataset, golden = open_items(tmp_path), ITEMS["in_place_mutation_bug"]
    lengths = [len(dataset.sample(0, epoch)["input_ids"]) for epoch in range(3)]
    assert lengths == [golden["n_ids_first"], golden["n_ids_second"], golden["n_ids_third"]]
    frames = read_frames(TEXT / "videos" / VIDEO_ROWS[0]["video"], 4)
    turns = VIDEO_ROWS[0]["conversations"]
    for _ in range(2):
        turns = with_time_instruction(turns, frames.num_total / frames.average_fps, frames.times_s)
    assert turns[0]["value"] == golden["value_after_second_access_of_index0"]


def test_a_batch_of_a_video_and_a_text(tmp_path):
    dataset, golden = open_items(tmp_path), ITEMS["collate_index1_index2"]
    again = dataset.sample(1, epoch=1)
    text = tokenize_conversation(ITEMS["data"][2]["conversations"], tokenizer(), [], recipe=ORIGINAL)
    batch = collate([again, {**text, "pixel_values_videos": []}], tokenizer().pad_token_id)
    assert [as_golden(ids) for ids in batch["input_ids"]] == golden["input_ids"]
    assert batch["labels"].tolist() == golden["labels"]
    assert batch["attention_mask"].tolist() == golden["attention_mask"]
    assert len(batch["pixel_values_videos"]) == 1


# -- order and rate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", ORDERS["modality_grouped_indices"], ids=lambda g: str(g["seed"]))
def test_order_of_an_epoch(golden):
    chance = torch.Generator().manual_seed(golden["seed"])
    steps = golden["world_size_times_grad_acc"]
    assert by_modality_and_length(golden["lengths"], golden["batch_size"], steps, chance) == golden["indices"]


@pytest.mark.parametrize("golden", ORDERS["cosine_schedule"], ids=lambda g: str(g["total_steps"]))
def test_rates(golden):
    factor = rate_factor(OptimizerSettings(lr=1e-6, warmup_ratio=0.03), golden["total_steps"])
    steps = range(golden["total_steps"])
    assert [[1e-6 * factor(step), 2e-6 * factor(step)] for step in steps] == golden["lr_base_and_vision"]
