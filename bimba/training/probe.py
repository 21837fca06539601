"""A cheap look at whether the model finds things in long videos, whatever it is trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch

from bimba.data.needle import NUM_OPTIONS, TASKS, NeedleConfig, digit_bank, render_clip
from bimba.data.prompt import LETTERS, multiple_choice, with_medium
from bimba.data.sampling import uniform_indices
from bimba.data.tokenize import tokenize_prompt
from bimba.data.transform import frames_to_pixels
from bimba.training.asking import asking
from bimba.training.reporting import PeriodicCallback, report, summed
from bimba.types import BimbaError

log = logging.getLogger(__name__)

_SEED = 20_251  # the questions are the same in all runs, so that their scores compare
_VIDEO_FRAMES = 3  # of a clip, for each one that the model looks at


@dataclass(frozen=True)
class _Clip:
    """The frames (T, size, size, 3) that the model sees of a clip, the question, and the right letter's number."""

    frames: np.ndarray
    prompt: str
    right: int


class NeedleProbe(PeriodicCallback):
    """Logs ``needle/score``, the share of needle questions answered right, and ``needle/probability`` of the right one.

    The clips are those of ``bimba.data.needle``, rendered in memory from digits that no training clip shows, with the
    options in the words of the published prompt. The answer is the likeliest of the four letters, so chance is 1/4.
    The probability, which moves before the score does, is among these letters too.

    Costs one pass without gradients per clip; the ranks share the clips, and each answers equally many.

    Args:
        clips: how many, rounded up to a multiple of the number of ranks; with 16 the score's standard error is 0.12 at
            most.
        tasks: of "retrieval", "ordering" and "counting", in turn.
    """

    def __init__(self, every_n_steps: int | None = 250, clips: int = 16, tasks: Sequence[str] = ("retrieval",)):
        super().__init__(every_n_steps)
        if clips < 1:
            raise BimbaError(f"callbacks.needle_probe.clips is {clips}; expected 1 or more.")
        if not tasks or set(tasks) - set(TASKS):
            raise BimbaError(
                f"callbacks.needle_probe.tasks is {list(tasks)}; expected one or more of {', '.join(TASKS)}."
            )
        self.clips = clips
        self.tasks = list(tasks)
        self._mine: list[_Clip] | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if not self.is_due(trainer):
            return
        if self._mine is None:
            numbers = range(trainer.global_rank, self.clips + -self.clips % trainer.world_size, trainer.world_size)
            self._mine = [_clip(number, self.tasks, pl_module.processor) for number in numbers]
        with asking(trainer, pl_module) as model:
            probabilities = [_probability_of_letters(clip, model, pl_module.processor) for clip in self._mine]
        right = [one[clip.right] for clip, one in zip(self._mine, probabilities, strict=True)]
        is_right = [float(p == one.max()) for p, one in zip(right, probabilities, strict=True)]
        score, probability, count = summed(trainer, torch.tensor([sum(is_right), sum(right), len(right)])).tolist()
        report(trainer, {"needle/score": score / count, "needle/probability": probability / count})


def _clip(number: int, tasks: Sequence[str], processor: Any) -> _Clip:
    """The ``number``-th question."""
    length = max(NeedleConfig.num_video_frames, _VIDEO_FRAMES * processor.num_frames)
    rng = np.random.default_rng([_SEED, number])
    letter = LETTERS[number % NUM_OPTIONS]
    task = tasks[(number // NUM_OPTIONS) % len(tasks)]
    clip = render_clip(NeedleConfig(num_video_frames=length), rng, digit_bank("test"), task, letter)
    prompt = with_medium(multiple_choice(clip.question, clip.options), newline=processor.newline_after_medium)
    return _Clip(clip.frames[uniform_indices(length, processor.num_frames)], prompt, LETTERS.index(letter))


def _probability_of_letters(clip: _Clip, model: Any, processor: Any) -> np.ndarray:
    """(letters,) how likely each is as the first word of the answer, among themselves."""
    tokenizer = processor.tokenizer
    letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in LETTERS[:NUM_OPTIONS]]
    count = processor.num_video_tokens(len(clip.frames))
    ids = tokenize_prompt([{"from": "human", "value": clip.prompt}], tokenizer, [count])[None].to(model.device)
    pixels = frames_to_pixels(clip.frames, processor.image_processor).to(model.device)
    logits = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=[pixels],
        logits_to_keep=1,
        use_cache=False,
    ).logits[0, -1]
    return torch.softmax(logits[letters].double(), dim=0).cpu().numpy()
