"""BIMBA in the harness: ``lmms-eval --model bimba --model_args pretrained=...``.

The harness hands over all questions of all tasks at once. They are grouped by video, so each video is decoded and
encoded once, and the next videos are decoded while the model answers.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from bimba.data.video import check_short_videos
from bimba.inference import EncodedVideo, VideoQA
from bimba.inference.answer import cut_at
from bimba.types import BimbaError, ShortVideoError, ShortVideos, VideoDecodeError

MAX_NEW_TOKENS = 16  # for tasks that do not say; answers are letters or short phrases
READ_AHEAD = 2  # videos decoded ahead of the one being answered
SHOWN = 10  # names in an error message


@dataclass(frozen=True)
class Question:
    """One request of the harness: a prompt about one video."""

    video: str
    prompt: str
    max_new_tokens: int
    stops: list[str]
    sampling: dict[str, Any]


class Bimba(lmms):
    """The chat model of the harness.

    A video that is missing stops the run before the first answer. A video that cannot be decoded does not, as hours of
    answers would be lost: its questions get the empty answer, which counts as wrong, each such file is logged, their
    number is logged at the end, and :attr:`unreadable` lists them (``evaluate.py`` writes it to ``summary.json``).

    Args:
        pretrained: a checkpoint folder or name for ``bimba.checkpoint.load_pretrained``.
        device, dtype, temporal_pooling, base: as for ``VideoQA.from_pretrained``.
        num_frames: frames sampled from each video; None = the checkpoint's number.
        short_videos: what becomes of a video with fewer frames than that. "repeat" some of them, as for the published
            numbers (benchmarks hold short clips), which is logged and counted, or "error": it counts as unreadable.
        batch_size, max_batch_size: taken because the harness passes them. Questions are answered one at a time, so
            that an answer never depends on what it was batched with.

    Attributes:
        unreadable: path -> error of each video that could not be decoded.
        short: the videos that had fewer frames than ``num_frames``, so that some repeat.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "bimba-tiny",
        device: str = "auto",
        dtype: str | None = None,
        num_frames: int | None = None,
        temporal_pooling: int | None = None,
        base: str | None = None,
        short_videos: ShortVideos = "repeat",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        check_short_videos(short_videos)
        if str(batch_size) != "1" or max_batch_size not in (None, 1):
            logger.info(f"bimba answers one question at a time; batch size {batch_size} is not used.")
        self.engine = VideoQA.from_pretrained(
            pretrained, device=device, dtype=dtype, temporal_pooling=temporal_pooling, base=base, cache_bytes=0
        )
        # Kept apart from the engine, which the harness deletes when it is done.
        self.temporal_pooling = int(self.engine.model.config.temporal_pooling)
        self.num_frames = self.engine.num_frames if num_frames is None else num_frames
        self.device: torch.device = self.engine.model.device
        self.short_videos = short_videos
        self.unreadable: dict[str, str] = {}
        self.short: set[str] = set()

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers of all requests, in their order."""
        questions = [self._question(request) for request in requests]
        self._check(questions)
        by_video: dict[str, list[int]] = {}
        for i, question in enumerate(questions):
            by_video.setdefault(question.video, []).append(i)

        answers: list[GenerationResult | None] = [None] * len(questions)
        progress = tqdm(total=len(questions), desc="bimba", unit="question", mininterval=1, disable=self.rank != 0)
        started, num_generated = time.perf_counter(), 0
        for path, pixel_values in self._read_ahead(by_video):
            if isinstance(pixel_values, VideoDecodeError):
                self.unreadable[path] = str(pixel_values)
                logger.error(f"Unreadable, its {len(by_video[path])} questions count as wrong: {pixel_values}")
                for i in by_video[path]:
                    answers[i] = GenerationResult(text="")
            else:
                video = self.engine.encode_pixels(pixel_values)
                for i in by_video[path]:
                    answers[i], num_new = _answer(video, questions[i])
                    num_generated += num_new
            progress.update(len(by_video[path]))
        progress.close()

        seconds = time.perf_counter() - started
        log_metrics(seconds, num_generated, num_generated / seconds if seconds > 0 else 0.0)
        if self.unreadable:
            names = _listing(self.unreadable)
            logger.error(f"{len(self.unreadable)} of {len(by_video)} videos unreadable, counted as wrong: {names}")
        if self.short:
            names = _listing(sorted(self.short))
            logger.warning(
                f"{len(self.short)} of {len(by_video)} videos have fewer than {self.num_frames} frames, so "
                f"frames repeat (short_videos=repeat): {names}"
            )
        return [answer for answer in answers if answer is not None]

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError(
            "bimba does not score given answers: lmms-eval up to 0.7.3 turns every log-likelihood into text before it "
            "is scored, so no such task can work. Use the task's generating variant (output_type: generate_until)."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError("bimba answers single questions; it has no tasks of several rounds.")

    def clean(self) -> None:
        """The harness asks for the memory back once all answers are there."""
        del self.engine
        super().clean()

    def _question(self, request: Instance) -> Question:
        _, doc_to_messages, gen_kwargs, doc_id, task, split = request.args
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        images, videos, audios = messages.extract_media()
        roles = [message.role for message in messages.messages]
        if roles != ["user"] or images or audios or len(videos) != 1 or not isinstance(videos[0], str):
            raise BimbaError(
                f"Task {task}, document {doc_id}: received turns {roles} with {len(images)} images, {len(videos)} "
                f"videos and {len(audios)} sounds; bimba takes one user turn with one video file. Choose another task."
            )
        texts = [content.text for content in messages.messages[0].content if content.type == "text"]
        return Question(videos[0], "\n".join(texts), *generation_options(gen_kwargs))

    def _check(self, questions: list[Question]) -> None:
        """Finds before the first answer what would stop the run after hours."""
        missing = [path for path in dict.fromkeys(q.video for q in questions) if not os.path.isfile(path)]
        if missing:
            raise BimbaError(f"{len(missing)} videos are missing: {_listing(missing)}. Nothing was evaluated.")
        for question in questions:
            self.engine.check_prompt(question.prompt, self.num_frames, question.max_new_tokens)

    def _read(self, path: str) -> Tensor:
        """(T, 3, h, w) pixel values; notes in :attr:`short` where frames repeat."""
        try:
            return self.engine.read(path, self.num_frames)
        except ShortVideoError:
            if self.short_videos == "error":
                raise
            pixel_values = self.engine.read(path, self.num_frames, self.short_videos)
            self.short.add(path)
            return pixel_values

    def _read_ahead(self, paths: Iterable[str]) -> Iterator[tuple[str, Tensor | VideoDecodeError]]:
        """Decodes in a second thread; yields (T, 3, h, w) pixel values, or the error, in the order of ``paths``."""
        remaining = iter(paths)
        pending: deque[tuple[str, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(max_workers=1) as pool:
            try:
                while True:
                    while len(pending) <= READ_AHEAD and (path := next(remaining, None)) is not None:
                        pending.append((path, pool.submit(self._read, path)))
                    if not pending:
                        return
                    path, reading = pending.popleft()
                    error = reading.exception()
                    if error is not None and not isinstance(error, VideoDecodeError):
                        raise error
                    yield path, error if error is not None else reading.result()
            finally:
                pool.shutdown(cancel_futures=True)


def generation_options(gen_kwargs: dict[str, Any]) -> tuple[int, list[str], dict[str, Any]]:
    """A task's ``generation_kwargs`` as what ``EncodedVideo.generate`` takes; the argument is left as it is.

    Returns:
        ``max_new_tokens``, the stop strings (``until``, which transformers does not know), and the sampling options.
        Without ``do_sample: true`` or a temperature above 0 decoding is greedy.
    """
    options = deepcopy(gen_kwargs)  # the harness keys its response cache on this very dict
    until = options.pop("until", None) or []
    max_new_tokens = int(options.pop("max_new_tokens", MAX_NEW_TOKENS))
    temperature = options.pop("temperature", None)
    sample = bool(options.pop("do_sample", bool(temperature))) and temperature != 0
    if sample:
        sampling = {**options, "do_sample": True, **({} if temperature is None else {"temperature": temperature})}
    else:  # transformers warns about sampling options that greedy decoding does not read
        sampling = {key: value for key, value in options.items() if key not in ("top_p", "top_k")}
    return max_new_tokens, [until] if isinstance(until, str) else list(until), sampling


def _answer(video: EncodedVideo, question: Question) -> tuple[GenerationResult, int]:
    generated = video.generate(question.prompt, question.max_new_tokens, **question.sampling)
    counts = TokenCounts(input_tokens=generated.prompt_tokens, output_tokens=generated.new_tokens)
    return GenerationResult(cut_at(generated.text, question.stops), counts), generated.new_tokens


def _listing(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
