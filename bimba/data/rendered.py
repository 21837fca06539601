"""Needle clips rendered straight into batches: what the tiny base is trained on, with no file in between.

Batch *i* is a function of (seed, i) alone, so a run can stop and resume anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from bimba.data.collate import collate
from bimba.data.needle import NeedleClip, NeedleConfig, conversation, digit_bank, render_clip
from bimba.data.prompt import with_medium
from bimba.data.tokenize import tokenize_conversation
from bimba.types import Batch


@dataclass(frozen=True)
class Stage:
    """One part of a curriculum.

    Attributes:
        until: the batch index at which the next stage begins.
        num_frames: lengths of clip, of which each batch has one.
        tasks: share of each task in a batch; a task whose needles do not fit into a clip is left out of it.
        forms: share of each form of conversation: "multiple_choice", "open_ended", or "both" in two turns, where
            the second can be answered from the first: that is how the model learns to read options.
    """

    until: int
    num_frames: Sequence[int] = (1, 2, 4, 8)
    tasks: dict[str, float] = field(default_factory=lambda: {"retrieval": 1.0})
    forms: dict[str, float] = field(default_factory=lambda: {"multiple_choice": 0.5, "open_ended": 0.2, "both": 0.3})


class RenderedNeedles(Dataset[Batch]):
    """Batches of short clips with one to a few needles, every frame of which the model sees."""

    def __init__(self, processor: Any, stages: Sequence[Stage], batch_size: int, clip: NeedleConfig, seed: int = 0):
        self.processor = processor
        self.stages = list(stages)
        self.batch_size = batch_size
        self.clip = clip
        self.seed = seed

    def __len__(self) -> int:
        return self.stages[-1].until

    def __getitem__(self, index: int) -> Batch:
        stage = next(s for s in self.stages if index < s.until)
        rng = np.random.default_rng([self.seed, index])
        num_frames = int(rng.choice(np.asarray(stage.num_frames)))
        configs = {t: c for t in stage.tasks if (c := _short_clip(self.clip, t, num_frames)) is not None}
        shares = np.array([stage.tasks[t] for t in configs])
        tasks = rng.choice(list(configs), self.batch_size, p=shares / shares.sum())
        clips = [render_clip(configs[task], rng, digit_bank("train"), task) for task in tasks]
        pixels = self.processor.pixel_values(np.concatenate([clip.frames for clip in clips]))
        count = self.processor.num_video_tokens(num_frames)
        samples = []
        for clip, video in zip(clips, pixels.split(num_frames)):
            form = str(rng.choice(list(stage.forms), p=list(stage.forms.values())))
            sample: dict[str, Any] = tokenize_conversation(_turns(clip, form), self.processor.tokenizer, [count])
            samples.append({**sample, "pixel_values_videos": [video]})
        return collate(samples, pad_token_id=self.processor.tokenizer.pad_token_id)


def _turns(clip: NeedleClip, form: str) -> list[dict[str, str]]:
    if form != "both":
        return conversation(clip, form)
    question, answer = conversation(clip, "multiple_choice")
    follow_up = {**question, "value": question["value"].removeprefix(with_medium(""))}
    return [*conversation(clip, "open_ended"), follow_up, answer]


def _short_clip(clip: NeedleConfig, task: str, num_frames: int) -> NeedleConfig | None:
    """``clip`` cut to ``num_frames``, with as many distractors as still fit; None if not even the needles do."""
    needles = {"retrieval": 1, "ordering": clip.ordering_needles, "counting": clip.max_count}[task]
    slots = (num_frames + clip.needle_gap) // (clip.needle_frames[1] + clip.needle_gap)
    if slots < needles:
        return None
    low, high = clip.distractors
    return replace(clip, num_video_frames=num_frames, distractors=(min(low, slots - needles), min(high, slots - needles)))
