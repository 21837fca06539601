"""The models behind the page. Each works for one session at a time, in a thread that all sessions share.

``VideoQA``, its cache and the hooks of a selection map are not for several threads, so whatever touches a model is a
job of :class:`Models`' one thread. Its queue is first come, first served, and no visitor who closes the page in the
middle of an answer can leave a lock behind. Maps are drawn in a second thread, so that no question waits for one: they
read weights, and nothing else of a model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from bimba.data.prompt import open_ended
from bimba.data.transform import frames_to_pixels
from bimba.inference import VideoQA
from bimba.inference.conversation import StopWhen
from bimba.inference.engine import Video
from bimba.inference.source import VideoKey
from bimba.model.selection import SelectionMap, Watched, last_scan, selection_map, spread_queries, watch
from bimba.types import BimbaError, Frames, ShortVideos, memory_error

P = ParamSpec("P")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Settings:
    """What ``bimba app`` was asked for.

    Attributes:
        checkpoints: one, or two to compare, with the base of each if it is an adapter (None: as its files say).
        num_frames: frames sampled of a video; None: each checkpoint's own number.
        max_new_tokens: of an answer; None: as ``EncodedVideo.ask``.
        queries: how many of the compressor's queries a selection map looks at.
        device, dtype, temporal_pooling: as of ``VideoQA.from_pretrained``, of both checkpoints.
    """

    checkpoints: Sequence[tuple[str, str | None]]
    num_frames: int | None = None
    short_videos: ShortVideos = "repeat"
    max_new_tokens: int | None = None
    queries: int = 128
    device: str = "auto"
    dtype: str | None = None
    temporal_pooling: int | None = None


@dataclass(frozen=True)
class Answered:
    """An answer: ``probabilities`` of the letters if there were options, ``watched`` if the question made a new map."""

    text: str
    seconds: float
    probabilities: dict[str, float] | None = None
    read_again: bool = False
    watched: Watched | None = None


class Model:
    """A checkpoint that answers.

    Attributes:
        label: names it on the page.
        no_map: why there is no selection map; None: there is one.
        map_needs_question: what is selected depends on what is asked.

    Raises:
        BimbaError: no such checkpoint, or it takes no video of so many frames.
    """

    def __init__(self, checkpoint: str, base: str | None, settings: Settings):
        self.engine = VideoQA.from_pretrained(
            checkpoint,
            device=settings.device,
            dtype=settings.dtype,
            temporal_pooling=settings.temporal_pooling,
            base=base,
        )
        self.settings = settings
        self.num_frames = self.engine.num_frames if settings.num_frames is None else settings.num_frames
        self.num_tokens = self.engine.processor.num_video_tokens(self.num_frames)
        self.engine.check_length(self.num_tokens, self.num_frames, 1)
        self.num_patches = self.num_frames * self.engine.model.config.patch_grid**2
        compressor = self.engine.model.compressor
        kind = self.engine.model.config.compressor["name"] if compressor else "no compressor"
        self.label = f"{_short(checkpoint)} ({kind})"
        self.full_label = f"{checkpoint} ({kind})"
        self.map_needs_question = bool(self.engine.model.question_conditioned)
        self.no_map: str | None = None
        try:
            last_scan(compressor)
        except BimbaError as reason:
            self.no_map = str(reason)

    def identify(self, path: Path) -> VideoKey:
        return self.engine.identify(path, self.num_frames, self.settings.short_videos)

    def encode(self, key: VideoKey, frames: Frames) -> Watched | None:
        """Encodes a video and keeps it; returns what its selection map is made of, if that needs no question."""
        pixels = frames_to_pixels(frames, self.engine.processor.image_processor)
        with self._watched(not self.map_needs_question) as seen:
            self.engine.cache.put(key, self.engine.encode_pixels(pixels))
        return seen[-1] if seen else None

    def select(self, watched: Watched) -> SelectionMap:
        return selection_map(watched, spread_queries(watched.queries.shape[1], self.settings.queries))

    def answer(
        self,
        key: VideoKey,
        question: str,
        options: Sequence[str],
        short: bool,
        say: Callable[[str], None],
        stopped: Callable[[], bool],
    ) -> Answered:
        """Answers a question about a video, which is read again if there was no room to keep it.

        Args:
            say: is given the answer so far whenever it has grown.
            stopped: nobody waits for the answer any more.
        """
        started = time.perf_counter()
        video = self.engine.encoded(key)
        read_again = video is None
        if video is None:
            video = self.engine.encode_loaded(key, self.engine.load(key))
            self.engine.cache.put(key, video)
        with self._watched(self.map_needs_question) as seen:
            text, probabilities = self._answer(video, question, options, short, say, stopped)
        seconds = time.perf_counter() - started
        return Answered(text, seconds, probabilities, read_again, seen[-1] if seen else None)

    def _answer(
        self,
        video: Video,
        question: str,
        options: Sequence[str],
        short: bool,
        say: Callable[[str], None],
        stopped: Callable[[], bool],
    ) -> tuple[str, dict[str, float] | None]:
        if options:
            choice = video.choose(question, options)
            return choice.letter, choice.probabilities
        generation = video.generate(
            open_ended(question) if short else question,
            self.settings.max_new_tokens,
            streamer=_Streamer(self.engine.processor.tokenizer, say),
            stopping_criteria=StoppingCriteriaList([StopWhen(stopped)]),
        )
        return generation.text, None

    def _watched(self, wanted: bool) -> Any:
        return watch(self.engine.model.compressor) if wanted and self.no_map is None else nullcontext([])


def failure(error: Exception) -> str:
    """What the page says of an error that is none of the visitor's."""
    short = memory_error(error, "Start bimba app with fewer --frames, a smaller checkpoint, or another --device.")
    return "The model failed; the terminal that runs bimba app says how." if short is None else str(short)


def _short(checkpoint: str) -> str:
    """A checkpoint's name without the folders around it; that of the run it is from, if it is called as all are."""
    path = Path(checkpoint)
    return str(Path(*path.parts[-2:])) if path.name == "checkpoint" else path.name


class Models:
    """One model, or two that are compared, and the threads in which they work."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.all = [Model(checkpoint, base, settings) for checkpoint, base in settings.checkpoints]
        if len({model.label for model in self.all}) < len(self.all):
            for model in self.all:
                model.label = model.full_label
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bimba-model")
        self._drawing = ThreadPoolExecutor(1, thread_name_prefix="bimba-map")
        self.ended = threading.Event()

    def submit(self, job: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Future[Result]:
        """A job, behind those that came before it.

        Raises:
            BimbaError: the page is being closed.
        """
        self._check_running()
        return self._thread.submit(job, *args, **kwargs)

    def draw(self, model: Model, watched: Watched) -> Future[SelectionMap]:
        """A selection map, beside the jobs.

        Raises:
            BimbaError: the page is being closed.
        """
        self._check_running()
        return self._drawing.submit(model.select, watched)

    def _check_running(self) -> None:
        if self.ended.is_set():
            raise BimbaError("bimba app has been stopped; start it again.")

    def forget(self, keys: Sequence[VideoKey]) -> None:
        """Lets go of encoded videos."""

        def job() -> None:
            for model in self.all:
                for key in keys:
                    model.engine.cache.discard(key)

        if not self.ended.is_set():
            self._thread.submit(job)

    def end(self) -> None:
        """No job begins after this one, and an answer that is being given stops at its next word."""
        self.ended.set()
        for thread in (self._thread, self._drawing):
            thread.shutdown(wait=False, cancel_futures=True)


class _Streamer(BaseStreamer):
    """Says the answer so far, a token at a time; transformers' own waits for spaces, which not every language has."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]):
        self._tokenizer, self._say = tokenizer, say
        self._ids: list[int] | None = None

    def put(self, value: Tensor) -> None:
        if self._ids is None:  # what comes first is the prompt
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        text = str(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        self._say(text.rstrip("\N{REPLACEMENT CHARACTER}").strip())  # half of a character that two tokens make

    def end(self) -> None:
        pass
