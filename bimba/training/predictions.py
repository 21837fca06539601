"""What the model says to a few validation samples, with the frames it was shown."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bimba.training.asking import asking, is_sharded
from bimba.training.loggers import Example
from bimba.training.reporting import dashboards, gathered, step_of
from bimba.types import Batch, BimbaError

log = logging.getLogger(__name__)

_USER, _ASSISTANT, _END = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"


@dataclass(frozen=True)
class _Asked:
    """The first question of a sample: ids (P,) of the prompt, its videos, and the words."""

    prompt: Tensor
    videos: list[Tensor]
    question: str
    answer: str


class SamplePredictions(L.Callback):
    """At each validation, greedy answers to its first samples: the same ones every time.

    Each logger shows them in its way: a table with pictures, text and images, or files in ``<run>/examples``. Samples
    with still images are left out.

    Costs ``samples`` answers of at most ``max_new_tokens`` per validation. Of a sharded model every rank answers, for
    itself, and texts and videos of several lengths are left out too: the ranks have to run the same parts of the model.
    Else only the first rank answers.

    Args:
        samples: how many; 0 for none.
        frames: how many of a sample's frames are shown, spread over it.
        height: of the shown frames, in pixels, at most.
    """

    KEY = "predictions"

    def __init__(self, samples: int = 4, max_new_tokens: int = 32, frames: int = 8, height: int = 112):
        for name, value, least in (
            ("samples", samples, 0),
            ("max_new_tokens", max_new_tokens, 1),
            ("frames", frames, 1),
            ("height", height, 1),
        ):
            if value < least:
                raise BimbaError(f"callbacks.predictions.{name} is {value}; expected {least} or more.")
        self.samples = samples
        self.max_new_tokens = max_new_tokens
        self.frames = frames
        self.height = height

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._examples: list[Example] = []

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, *_: Any) -> None:
        missing = self.samples - len(self._examples)
        sharded = is_sharded(pl_module)
        if missing <= 0 or trainer.sanity_checking or not (trainer.is_global_zero or sharded):
            return
        asked = list(_questions(batch, pl_module.processor))
        if sharded:  # every rank as often as the one with the fewest, and with one pass of the vision tower each
            asked = [one for one in asked if _num_passes(one, pl_module.model) == 1]
            asked = asked[: min(gathered(trainer, len(asked)))]
        asked = asked[:missing]
        with asking(trainer, pl_module) as model:
            self._examples += [self._answer(one, model, pl_module.processor, sharded) for one in asked]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in dashboards(trainer) if self._examples else []:
            logger.log_examples(self.KEY, self._examples, step_of(trainer))
        self._examples = []

    def _answer(self, asked: _Asked, model: Any, processor: Any, sharded: bool) -> Example:
        ids = asked.prompt[None]
        answer = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=asked.videos or None,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            synced_gpus=sharded,
        )
        prediction = processor.tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
        return Example(asked.question, asked.answer, prediction, self._shown(asked.videos, processor))

    def _shown(self, videos: list[Tensor], processor: Any) -> np.ndarray:
        """(n, height, width, 3) uint8 of the first video, as far as possible as it was before it was normalised."""
        if not videos:
            return np.empty((0, 1, 1, 3), np.uint8)
        video = videos[0]
        video = video[torch.linspace(0, len(video) - 1, min(self.frames, len(video))).long()].float().cpu()
        if video.shape[2] > self.height:
            width = max(1, round(video.shape[3] * self.height / video.shape[2]))
            video = F.interpolate(video, size=(self.height, width), mode="area")
        mean, std = (torch.tensor(getattr(processor.image_processor, f"image_{name}")) for name in ("mean", "std"))
        pixels = video * std[:, None, None] + mean[:, None, None]
        return (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def _questions(batch: Batch, processor: Any) -> Iterator[_Asked]:
    """The first question of each sample that has no still image."""
    tokenizer, videos = processor.tokenizer, list(batch.get("pixel_values_videos") or [])
    image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    headers = [torch.tensor(tokenizer.encode(text, add_special_tokens=False)) for text in (_USER, _ASSISTANT, _END)]
    for row, mask in zip(batch.get("input_ids", ()), batch.get("attention_mask", ()), strict=True):
        ids = row[mask.bool()]
        mine, missing = [], int((ids == processor.video_token_id).sum())
        while missing > 0:
            mine.append(videos.pop(0))
            missing -= processor.num_video_tokens(len(mine[-1]))
        user, assistant, end = (header.to(ids.device) for header in headers)
        asks, answers = _find(ids, user), _find(ids, assistant)
        if image_token in ids or asks is None or answers is None:
            continue
        begin = answers + len(assistant)
        stop = _find(ids[begin:], end)
        prompt, answer = ids[:begin], ids[begin:] if stop is None else ids[begin : begin + stop]
        words = prompt[asks + len(user) : answers]
        question = tokenizer.decode(words[words != processor.video_token_id], skip_special_tokens=True).strip()
        yield _Asked(prompt, mine, question, tokenizer.decode(answer, skip_special_tokens=True).strip())


def _num_passes(asked: _Asked, model: Any) -> int:
    """How often the vision tower and the compressor run for a question."""
    questions = model.questions(asked.prompt[None], [len(video) for video in asked.videos])
    return len(model.passes(asked.videos, questions))


def _find(ids: Tensor, pattern: Tensor) -> int | None:
    """Where ``pattern`` first begins in ``ids``; None: nowhere."""
    if len(ids) < len(pattern):
        return None
    places = (ids.unfold(0, len(pattern), 1) == pattern).all(dim=1).nonzero()
    return int(places[0]) if len(places) else None
