from __future__ import annotations

import torch

from bimba.data.collate import collate
from bimba.types import BadSample

BAD = BadSample(path="x.mp4", error="x.mp4: empty")


def sample(length: int, num_frames: int = 2) -> dict:
    ids = torch.arange(1, length + 1)
    return {"input_ids": ids, "labels": -ids, "pixel_values_videos": [torch.full((num_frames, 3, 4, 4), length)]}


def test_pads_to_the_right():
    batch = collate([sample(3), sample(5)], pad_token_id=99)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 99, 99], [1, 2, 3, 4, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-1, -2, -3, -100, -100], [-1, -2, -3, -4, -5]]
    assert {batch[key].dtype for key in ("input_ids", "attention_mask", "labels")} == {torch.int64}
    assert batch["bad_samples"] == []


def test_a_pad_token_inside_a_sample_is_attended():
    batch = collate([sample(3), sample(5)], pad_token_id=2)
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 0, 0]


def test_videos_stay_in_order_and_keep_their_frame_counts():
    videos = collate([sample(3, num_frames=2), sample(5, num_frames=7)], pad_token_id=0)["pixel_values_videos"]
    assert [tuple(video.shape) for video in videos] == [(2, 3, 4, 4), (7, 3, 4, 4)]
    assert [video[0, 0, 0, 0].item() for video in videos] == [3, 5]


def test_bad_samples_are_set_aside():
    batch = collate([BAD, sample(3), BAD], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3]]
    assert len(batch["pixel_values_videos"]) == 1
    assert batch["bad_samples"] == [BAD, BAD]


def test_nothing_but_bad_samples():
    assert collate([BAD], pad_token_id=0) == {"bad_samples": [BAD]}
