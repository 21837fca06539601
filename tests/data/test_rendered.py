"""Rendered batches: a function of (seed, index), resumable, each sample with its own video."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_checkpoint import IMAGE_SIZE, tiny_model

from bimba.data.needle import NeedleConfig
from bimba.data.rendered import RenderedNeedles, RenderedNeedlesDataModule, Stage
from bimba.types import BimbaError

CLIP = NeedleConfig(
    size=IMAGE_SIZE, needle_px=8, needle_grid_px=8, needle_frames=(1, 1), needle_gap=0, distractors=(0, 1)
)
STAGES = [
    Stage(until=2, num_frames=[1], forms={"options": 1.0}),
    Stage(
        until=6,
        num_frames=[1, 4],
        tasks={"retrieval": 0.5, "ordering": 0.25, "counting": 0.25},
        forms={"multiple_choice": 0.4, "open_ended": 0.3, "both": 0.3},
    ),
]


@pytest.fixture(scope="module")
def processor():
    return tiny_model()[1]


def same(one, two) -> bool:
    return torch.equal(one["input_ids"], two["input_ids"]) and all(
        torch.equal(a, b) for a, b in zip(one["pixel_values_videos"], two["pixel_values_videos"], strict=True)
    )


def test_a_batch_is_a_function_of_seed_and_index(processor):
    batches = RenderedNeedles(processor, STAGES, 8, CLIP, seed=1)
    assert same(batches[4], RenderedNeedles(processor, STAGES, 8, CLIP, seed=1)[4])
    assert not same(batches[4], batches[5])
    assert not same(batches[4], RenderedNeedles(processor, STAGES, 8, CLIP, seed=2)[4])


def test_a_stage_about_options_has_no_video(processor):
    batch = RenderedNeedles(processor, STAGES, 8, CLIP)[0]
    assert batch["pixel_values_videos"] == []
    assert not (batch["input_ids"] == processor.video_token_id).any()


def test_every_placeholder_has_its_video(processor):
    batches = RenderedNeedles(processor, STAGES, 8, CLIP)
    for index in range(2, 6):
        batch = batches[index]
        placeholders = (batch["input_ids"] == processor.video_token_id).sum(1).tolist()
        assert placeholders == [processor.num_video_tokens(len(video)) for video in batch["pixel_values_videos"]]


def test_a_task_that_does_not_fit_is_left_out(processor):
    stage = replace(STAGES[1], num_frames=[1], forms={"open_ended": 1.0})
    batch = RenderedNeedles(processor, [stage], 16, CLIP)[0]
    assert all("Which digit" in processor.tokenizer.decode(ids) for ids in batch["input_ids"])


def test_training_goes_on_where_it_stopped(processor):
    data = RenderedNeedlesDataModule(processor, STAGES, CLIP, global_batch_size=4, batch_size=4)

    class Trainer:
        global_step = 4

    whole = list(data.train_dataloader())
    data.trainer = Trainer()
    rest = list(data.train_dataloader())
    assert len(rest) == 2
    assert all(same(a, b) for a, b in zip(rest, whole[4:]))


def test_a_run_longer_than_the_curriculum_is_an_error(processor):
    data = RenderedNeedlesDataModule(processor, STAGES, CLIP, global_batch_size=4, batch_size=4)

    class Trainer:
        global_step = 6

    data.trainer = Trainer()
    with pytest.raises(BimbaError, match="ends after 6 steps and 6 are done"):
        next(iter(data.train_dataloader()))


def test_one_batch_is_one_step(processor):
    with pytest.raises(BimbaError, match=r"batch_size is 2 and data.global_batch_size 4"):
        RenderedNeedlesDataModule(processor, STAGES, CLIP, global_batch_size=4, batch_size=2)
