"""[6] Many questions about many videos: each video is read, encoded and prefilled once, in whatever order they come.

Questions are grouped by the video they ask about; the videos come in the order of their first question. While the model
answers, threads decode the next ones (``readahead.py``). An answer never depends on what else is asked.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from bimba.inference.answer import Choice, Generation
from bimba.inference.encoded import batchable
from bimba.inference.readahead import read_ahead
from bimba.inference.source import Loaded, VideoKey
from bimba.types import BimbaError, ShortVideos, VideoDecodeError

WORKERS = 2  # videos decoded at a time
BATCH = 8  # questions in a batch at most: each takes a copy of the video's keys and values
SHOWN = 10  # names in an error message


@dataclass(frozen=True)
class Question:
    """A prompt about a video file.

    Attributes:
        prompt: what stands after the video, as it is.
        num_frames: None: the engine's.
        max_new_tokens: None: as for ``EncodedVideo.ask``.
        sampling: as for ``EncodedVideo.generate``; empty is greedy.
        num_options: the answer is the likeliest of so many letters, as ``EncodedVideo.choose_letter`` finds it; None:
            the answer is generated.
    """

    video: str
    prompt: str
    num_frames: int | None = None
    max_new_tokens: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    num_options: int | None = None


@dataclass
class Work:
    """What answering took.

    Attributes:
        unreadable: path -> error of each video that could not be decoded.
        short: the videos that had fewer frames than asked for, so that some repeat.
        decoded, stored, cached: videos decoded; taken from the store on disk; found encoded in memory.
        answered: questions that the model answered, the repeated ones included.
        wait_s: how long the model waited for a video.
        encode_s, answer_s: how long it encoded and prefilled videos, and answered.
    """

    unreadable: dict[str, str] = field(default_factory=dict)
    short: set[str] = field(default_factory=set)
    decoded: int = 0
    stored: int = 0
    cached: int = 0
    answered: int = 0
    wait_s: float = 0.0
    encode_s: float = 0.0
    answer_s: float = 0.0

    def add_short(self, videos: Iterable[str]) -> None:
        """Adds short videos that an earlier run read; a file that is there by another name is not added."""
        known = {os.path.realpath(video) for video in self.short}
        for video in videos:
            if (file := os.path.realpath(video)) not in known:
                known.add(file)
                self.short.add(video)


class Video(Protocol):
    """What is asked of an ``EncodedVideo``."""

    def generate(self, prompt: str, max_new_tokens: int | None = None, **sampling: Any) -> Generation: ...
    def generate_batch(
        self, prompts: Sequence[str], max_new_tokens: int | None = None, **settings: Any
    ) -> list[Generation]: ...
    def choose_letter(self, prompt: str, num_options: int) -> Choice: ...


class Engine(Protocol):
    """What is asked of a ``VideoQA``."""

    def identify(self, path: str, num_frames: int | None, short_videos: ShortVideos) -> VideoKey: ...
    def load(self, key: VideoKey) -> Loaded: ...
    def loaded_bytes(self, key: VideoKey) -> int: ...
    def encode_loaded(self, key: VideoKey, loaded: Loaded) -> Video: ...
    def encoded(self, key: VideoKey) -> Video | None: ...
    def make_room(self, num_bytes: int) -> int: ...


def answer_each(
    engine: Engine,
    questions: Sequence[Question],
    *,
    short_videos: ShortVideos = "error",
    workers: int = WORKERS,
    work: Work | None = None,
    batch_questions: bool = False,
) -> Iterator[tuple[int, Generation | VideoDecodeError]]:
    """Answers all questions, video by video.

    Args:
        short_videos: what becomes of a video with fewer frames than asked for: "error", or "repeat" some of them.
        workers: how many videos are decoded at a time, ahead of the model.
        work: filled in as the work proceeds.
        batch_questions: greedy questions about a video that are decoded alike are answered at most ``BATCH`` at a time,
            as for ``EncodedVideo.generate_batch``.

    Yields:
        The position of a question in ``questions`` and its answer, as soon as it is there; if its video cannot be
        decoded, the error. Whoever stops iterating stops the work.

    Raises:
        BimbaError: fewer than one worker, a video file that is missing, or what ``EncodedVideo.generate`` raises.
    """
    if workers < 1:
        raise BimbaError(f"workers is {workers}; expected 1 or more.")
    work = Work() if work is None else work
    groups = _by_video(engine, questions, short_videos)

    absent = []
    for key, members in groups.items():
        if (video := engine.encoded(key)) is None:
            absent.append(key)
            continue
        work.cached += 1
        yield from _answer(video, questions, members, work, batch_questions)

    wanted = min(2 * workers, len(absent)) * max(map(engine.loaded_bytes, absent), default=0)
    started = time.perf_counter()
    for key, loaded in read_ahead(absent, engine.load, engine.loaded_bytes, engine.make_room(wanted), workers):
        work.wait_s += time.perf_counter() - started
        if isinstance(loaded, VideoDecodeError):
            work.unreadable[questions[groups[key][0]].video] = str(loaded)
            yield from ((i, loaded) for i in groups[key])
        else:
            work.stored += loaded.are_tokens
            work.decoded += not loaded.are_tokens
            if loaded.is_short:
                work.short.add(questions[groups[key][0]].video)
            encoding = time.perf_counter()
            video = engine.encode_loaded(key, loaded)
            del loaded  # or the pixels would stay beside those of the next video
            work.encode_s += time.perf_counter() - encoding
            yield from _answer(video, questions, groups[key], work, batch_questions)
            del video
        started = time.perf_counter()


def _by_video(engine: Engine, questions: Sequence[Question], short_videos: ShortVideos) -> dict[VideoKey, list[int]]:
    groups: dict[VideoKey, list[int]] = {}
    missing: dict[str, None] = {}
    for i, question in enumerate(questions):
        try:
            key = engine.identify(question.video, question.num_frames, short_videos)
        except VideoDecodeError:
            missing[question.video] = None
        else:
            groups.setdefault(key, []).append(i)
    if missing:
        raise BimbaError(f"{len(missing)} videos are missing: {listing(missing)}. Nothing was answered.")
    return groups


def listing(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _answer(
    video: Video, questions: Sequence[Question], members: Sequence[int], work: Work, batch_questions: bool
) -> Iterator[tuple[int, Generation]]:
    """The same question asked again has the same answer, unless it is drawn by lot."""
    known: dict[str, Generation] = {}
    for group in _batches(questions, members) if batch_questions else ([i] for i in members):
        started = time.perf_counter()
        # Of those drawn by lot none is the same as another; they come alone.
        absent = {_same(questions[i]): questions[i] for i in group if _same(questions[i]) not in known}
        found = _ask(video, list(absent.values()))
        work.answered += len(found)
        answers = {**known, **dict(zip(absent, found))}
        if not questions[group[0]].sampling.get("do_sample"):
            known = answers
        work.answer_s += time.perf_counter() - started
        yield from ((i, answers[_same(questions[i])]) for i in group)


def _ask(video: Video, questions: Sequence[Question]) -> list[Generation]:
    """Answers to one question, or to several that are decoded alike."""
    if not questions:
        return []
    first = questions[0]
    if first.num_options is not None:
        choice = video.choose_letter(first.prompt, first.num_options)
        return [Generation(choice.letter, choice.prompt_tokens, 0, choice.probabilities)]
    if len(questions) == 1:
        return [video.generate(first.prompt, first.max_new_tokens, **first.sampling)]
    return video.generate_batch([q.prompt for q in questions], first.max_new_tokens, **first.sampling)


def _batches(questions: Sequence[Question], members: Sequence[int]) -> list[list[int]]:
    """Questions that are decoded alike, and greedily, at most ``BATCH`` together; every other alone."""
    alike: dict[str, list[int]] = {}
    alone = []
    for i in members:
        question = questions[i]
        if question.num_options is None and batchable(question.sampling):
            alike.setdefault(_same(replace(question, prompt="")), []).append(i)
        else:
            alone.append([i])
    return [*(group[i : i + BATCH] for group in alike.values() for i in range(0, len(group), BATCH)), *alone]


def _same(question: Question) -> str:
    """Equal for questions about a video that have the same answer."""
    asked = [question.prompt, question.max_new_tokens, dict(question.sampling), question.num_options]
    return json.dumps(asked, default=repr)
