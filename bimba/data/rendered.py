"""Needle clips rendered straight into batches: what the tiny base is trained on, with no file in between.

Batch *i* is a function of (seed, i) alone, so a run can stop and resume anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from bimba.data.collate import collate
from bimba.data.needle import NUM_OPTIONS, NeedleClip, NeedleConfig, conversation, digit_bank, render_clip
from bimba.data.prompt import LETTERS, with_medium
from bimba.data.recipe import DEFAULT
from bimba.data.tokenize import tokenize_conversation
from bimba.data.transform import frames_to_pixels
from bimba.data.workers import outlive_signals, own_chance
from bimba.types import Batch, BimbaError


@dataclass(frozen=True)
class Stage:
    """One part of a curriculum.

    Attributes:
        until: the batch index at which the next stage begins.
        num_frames: lengths of clip, of which each batch has one.
        tasks: share of each task in a batch; a task whose needles do not fit into a clip is left out of it.
        forms: share of each form of conversation: "multiple_choice"; "open_ended"; "both", in two turns, where the
            second can be answered from the first; "options", a multiple choice about its own options and without a
            video, which is how the model learns to read options at all.
    """

    until: int
    num_frames: Sequence[int] = (1, 2, 4, 8)
    tasks: dict[str, float] = field(default_factory=lambda: {"retrieval": 1.0})
    forms: dict[str, float] = field(default_factory=lambda: {"multiple_choice": 0.6, "open_ended": 0.2, "both": 0.2})


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
        samples: list[dict[str, Any]] = []
        frames: list[np.ndarray] = []
        for form in rng.choice(list(stage.forms), self.batch_size, p=list(stage.forms.values())):
            if form == "options":
                samples.append(tokenize_conversation(_about_options(rng), self.processor.tokenizer, []))
                continue
            task = str(rng.choice(list(configs), p=shares / shares.sum()))
            clip = render_clip(configs[task], rng, digit_bank("train"), task)
            count = self.processor.num_video_tokens(num_frames)
            samples.append(tokenize_conversation(_turns(clip, form), self.processor.tokenizer, [count]))
            samples[-1]["pixel_values_videos"] = len(frames)
            frames.append(clip.frames)
        pixels = frames_to_pixels(np.concatenate(frames), self.processor.image_processor) if frames else None
        videos = () if pixels is None else pixels.split(num_frames)
        for sample in samples:
            sample["pixel_values_videos"] = (
                [videos[sample["pixel_values_videos"]]] if "pixel_values_videos" in sample else []
            )
        return collate(samples, pad_token_id=self.processor.tokenizer.pad_token_id)


def _turns(clip: NeedleClip, form: str) -> list[dict[str, str]]:
    if form != "both":
        return conversation(clip, form)
    question, answer = conversation(clip, "multiple_choice")
    follow_up = {**question, "value": question["value"].removeprefix(with_medium(""))}
    return [*conversation(clip, "open_ended"), follow_up, answer]


def _about_options(rng: np.random.Generator) -> list[dict[str, str]]:
    digits = [str(d) for d in rng.permutation(10)[:NUM_OPTIONS]]
    right = int(rng.integers(NUM_OPTIONS))
    lines = [f"{letter}. {digit}" for letter, digit in zip(LETTERS, digits)]
    question = "\n".join([f"Which option is {digits[right]}?", *lines, "The best answer is:"])
    return [{"from": "human", "value": question}, {"from": "gpt", "value": LETTERS[right]}]


def _short_clip(clip: NeedleConfig, task: str, num_frames: int) -> NeedleConfig | None:
    """``clip`` cut to ``num_frames``, with as many distractors as still fit; None if not even the needles do."""
    needles = {"retrieval": 1, "ordering": clip.ordering_needles, "counting": clip.max_count}[task]
    slots = (num_frames + clip.needle_gap) // (clip.needle_frames[1] + clip.needle_gap)
    if slots < needles:
        return None
    low, high = clip.distractors
    return replace(
        clip, num_video_frames=num_frames, distractors=(min(low, slots - needles), min(high, slots - needles))
    )


class RenderedNeedlesDataModule(L.LightningDataModule):
    """Training batches of :class:`RenderedNeedles`, one pass in the order of the curriculum.

    Args:
        stages, clip, seed: see ``RenderedNeedles``.
        global_batch_size, batch_size: samples per optimizer step and per pass; here they are the same number.
        num_workers: processes that render.
    """

    recipe = DEFAULT

    def __init__(
        self,
        processor: Any,
        stages: Sequence[Stage],
        clip: NeedleConfig,
        global_batch_size: int,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        if batch_size != global_batch_size:
            raise BimbaError(
                f"data.batch_size is {batch_size} and data.global_batch_size {global_batch_size}; rendered needles "
                "come as whole batches on one process, so set both to the same number."
            )
        self.num_workers = num_workers
        self.batches = RenderedNeedles(processor, stages, batch_size, clip, seed)

    def train_dataloader(self) -> DataLoader[Batch]:
        sampler = _Remaining(len(self.batches), lambda: self.trainer.global_step if self.trainer is not None else 0)
        return DataLoader(
            self.batches,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            worker_init_fn=outlive_signals,
            generator=own_chance(self.batches.seed),
        )


class _Remaining(Sampler[int]):
    """The batches from the first that was not trained on; its length stays the whole, as Lightning counts on."""

    def __init__(self, total: int, done: Callable[[], int]):
        self.total = total
        self.done = done

    def __iter__(self) -> Iterator[int]:
        done = self.done()  # now, not before: Lightning makes its loaders before it restores its counters
        if done >= self.total:
            raise BimbaError(
                f"The curriculum ends after {self.total} steps and {done} are done; lower trainer.max_steps, or raise "
                "`until` of the last of data.stages."
            )
        return iter(range(done, self.total))

    def __len__(self) -> int:
        return self.total
