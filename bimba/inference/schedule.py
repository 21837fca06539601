"""[6] Many questions about many videos: each video is read, encoded and prefilled once, in whatever order they come.

Questions are grouped by the video they ask about; the videos come in the order of their first question. While the model
answers, threads decode the next ones (``readahead.py``). An answer never depends on what else is asked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bimba.inference.answer import Generation
from bimba.inference.readahead import read_ahead
from bimba.inference.source import Loaded, VideoKey
from bimba.types import BimbaError, ShortVideos, VideoDecodeError

WORKERS = 2  # videos decoded at a time
SHOWN = 10  # names in an error message


@dataclass(frozen=True)
class Question:
    """A prompt about a video file.

    Attributes:
        prompt: what stands after the video, as it is.
        num_frames: None: the engine's.
        max_new_tokens: None: as for ``EncodedVideo.ask``.
        sampling: as for ``EncodedVideo.generate``; empty is greedy.
    """

    video: str
    prompt: str
    num_frames: int | None = None
    max_new_tokens: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


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


class Video(Protocol):
    """What is asked of an ``EncodedVideo``."""

    def generate(self, prompt: str, max_new_tokens: int | None = None, **sampling: Any) -> Generation: ...


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
) -> Iterator[tuple[int, Generation | VideoDecodeError]]:
    """Answers all questions, video by video.

    Args:
        short_videos: what becomes of a video with fewer frames than asked for: "error", or "repeat" some of them.
        workers: how many videos are decoded at a time, ahead of the model.
        work: filled in as the work proceeds.

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
        yield from _answer(video, questions, members, work)

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
            yield from _answer(video, questions, groups[key], work)
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
    video: Video, questions: Sequence[Question], members: Sequence[int], work: Work
) -> Iterator[tuple[int, Generation]]:
    """The same question asked again has the same answer, unless it is drawn by lot."""
    known: dict[str, Generation] = {}
    for i in members:
        question = questions[i]
        same = json.dumps([question.prompt, question.max_new_tokens, dict(question.sampling)], default=repr)
        started = time.perf_counter()
        answer = known.get(same)
        if answer is None:
            answer = video.generate(question.prompt, question.max_new_tokens, **question.sampling)
            work.answered += 1
        if not question.sampling.get("do_sample"):
            known[same] = answer
        work.answer_s += time.perf_counter() - started
        yield i, answer
