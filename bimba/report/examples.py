"""A few questions of each task with what the model saw and said: right ones and wrong ones, always the same."""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bimba.data.isolated import read_frames
from bimba.data.prompt import LETTERS
from bimba.report.measures import Sample, by_document, question_score
from bimba.types import BimbaError, ShortVideos

EACH = 2  # right answers, and as many wrong ones
SHOWN_FRAMES = 6
FRAME_WIDTH = 176
OPTION = re.compile(r"[A-Z][.)] ")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """A small JPEG of a frame that the model saw, and when it is shown."""

    jpeg: bytes
    time_s: float

    @property
    def data_uri(self) -> str:
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"

    @property
    def clock(self) -> str:
        minutes, seconds = divmod(self.time_s, 60)
        return f"{int(minutes)}:{seconds:04.1f}"


@dataclass(frozen=True)
class Example:
    """A question and its answer.

    Attributes:
        verdict: "right", "wrong", or "not scored" where others know the answers.
        before, options, after: the lines of the prompt; options as (letter or "", line).
        reference: the letter that is right, or the data set's own word for it; None if it is not known.
        note: why there are no frames.
    """

    task: str
    doc_id: int
    video: str
    verdict: str
    before: str
    options: list[tuple[str, str]]
    after: str
    reference: str | None
    answer: str
    num_frames: int
    frames: list[Frame]
    note: str = ""

    @property
    def prompt(self) -> str:
        return "\n".join([part for part in (self.before, *(line for _, line in self.options), self.after) if part])


def choose(samples: Sequence[Sample], metric: str | None, each: int = EACH) -> list[tuple[str, Sample]]:
    """Verdicts and samples: ``each`` right and ``each`` wrong ones, spread evenly over the data set.

    Args:
        metric: 1 for a right answer; None: the answers are not known, and twice as many are taken.
    """
    ordered = by_document(samples)
    if metric is None:
        return [("not scored", sample) for sample in _spread(ordered, 2 * each)]
    right = [sample for sample in ordered if question_score(sample.get(metric)) == 1]
    wrong = [sample for sample in ordered if question_score(sample.get(metric)) != 1]
    return [
        *(("right", sample) for sample in _spread(right, each)),
        *(("wrong", sample) for sample in _spread(wrong, each)),
    ]


def examples(
    task: str,
    samples: Sequence[Sample],
    metric: str | None,
    videos: Mapping[int, tuple[str, str, int]],
    short_videos: ShortVideos,
    unreadable: Mapping[str, str],
) -> list[Example]:
    """The chosen samples with the frames that the model saw; decodes their videos again.

    Args:
        videos: document -> video file, prompt, number of frames.
        unreadable: video file -> error of those that need not be tried again: a decoder may have hung on one.
    """
    return [
        _example(task, verdict, sample, *videos[sample["doc_id"]], short_videos, unreadable)
        for verdict, sample in choose(samples, metric)
    ]


def split_prompt(prompt: str) -> tuple[str, list[tuple[str, str]], str]:
    """A prompt in three: what stands before its lettered options, these as (letter, line), and what stands behind."""
    lines = prompt.split("\n")
    first = next((i for i, line in enumerate(lines) if line.startswith(("A. ", "A) "))), None)
    if first is None:
        return prompt, [], ""
    options: list[tuple[str, str]] = []
    rest: list[str] = []
    for line in lines[first:]:
        if OPTION.match(line) and not rest:
            options.append((line[0], line))
        else:
            rest.append(line)
    return "\n".join(lines[:first]), options, "\n".join(rest)


def reference_letter(target: Any, num_options: int) -> str | None:
    """Data sets name the right option by its letter or by its number from 0; anything else is left as it is."""
    text = "" if target is None else str(target)
    if text.isdigit() and int(text) < min(num_options, len(LETTERS)):
        return LETTERS[int(text)]
    return None if text in ("", "None") else text


def _example(
    task: str,
    verdict: str,
    sample: Sample,
    video: str,
    prompt: str,
    num_frames: int,
    short_videos: ShortVideos,
    unreadable: Mapping[str, str],
) -> Example:
    before, options, after = split_prompt(prompt)
    response = sample["filtered_resps"]
    answer = response if isinstance(response, str) else str(response[0])
    frames, note = ([], unreadable[video]) if video in unreadable else _frames(video, num_frames, short_videos)
    known = None if verdict == "not scored" else reference_letter(sample["target"], len(options))
    name = Path(video).name
    return Example(
        task, sample["doc_id"], name, verdict, before, options, after, known, answer, num_frames, frames, note
    )


def _frames(video: str, num_frames: int, short_videos: ShortVideos) -> tuple[list[Frame], str]:
    from PIL import Image

    try:
        seen = read_frames(video, num_frames, short_videos=short_videos)
    except BimbaError as error:
        return [], str(error)
    shown = []
    for i in _spread(range(len(seen.times_s)), SHOWN_FRAMES):
        picture = Image.fromarray(seen.pixels[i])
        height = max(1, round(FRAME_WIDTH * picture.height / picture.width))
        buffer = io.BytesIO()
        picture.resize((FRAME_WIDTH, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=75)
        shown.append(Frame(buffer.getvalue(), float(seen.times_s[i])))
    return shown, ""


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` of them, evenly spread, the first and the last included; all if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[i * (len(items) - 1) // max(1, count - 1)] for i in range(count)]
