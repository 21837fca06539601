"""BIMBA in the harness: ``lmms-eval --model bimba --model_args pretrained=...``.

The harness hands over all questions of all tasks at once. The engine reads each video once, decodes the next ones while
the model answers, and a journal keeps each answer as soon as it is there.
"""

from __future__ import annotations

import inspect
import os
import time
from collections import Counter
from contextlib import ExitStack
from typing import Any, NoReturn

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from loguru import logger
from tqdm import tqdm

from bimba.data.isolated import read_videos_with
from bimba.data.video import check_short_videos, checked_backend
from bimba.inference import Question, VideoQA
from bimba.inference.answer import Generation, cut_at
from bimba.inference.engine import CACHE_BYTES
from bimba.inference.fingerprint import fingerprint
from bimba.inference.journal import Journal, journal_key
from bimba.inference.schedule import WORKERS, Work, answer_each, listing
from bimba.inference.source import content_marks
from bimba.inference.store import STORE_BYTES, TokenStore
from bimba.types import BimbaError, ShortVideos, VideoDecodeError
from lmms_eval_plugin.asking import (
    Request,
    check_arguments,
    check_choices,
    check_lengths,
    read_question,
    refuse_arguments,
)
from lmms_eval_plugin.deal import deal_by_video, dealt_videos, missing_video
from lmms_eval_plugin.prepare.sources import hint
from lmms_eval_plugin.ranks import from_all

PADDING = "__padding_only__"  # the harness's mark on requests that only make ranks even


class Bimba(lmms):
    """The chat model of the harness.

    Videos that are missing stop the run before the first answer. A video that cannot be decoded does not, as hours of
    answers would be lost: its questions get the empty answer, which counts as wrong, each such file is logged, their
    number is logged at the end, and :attr:`unreadable` lists them (``evaluate.py`` writes it to ``summary.json``).
    Such a run is :attr:`incomplete`, and the harness's results say so too (:meth:`clean`).

    With several processes, those of ``torchrun`` or ``accelerate launch``, all questions about a video go to the same
    one (``lmms_eval_plugin/deal.py``).

    Args:
        pretrained: a checkpoint folder or name for ``bimba.checkpoint.load_pretrained``.
        device, dtype, temporal_pooling, base: as for ``VideoQA.from_pretrained``.
        num_frames: frames sampled from each video; None = as the task says in its ``generation_kwargs``, or else the
            checkpoint's number.
        short_videos: what becomes of a video with fewer frames than that. "repeat" some of them, as for the published
            numbers (benchmarks hold short clips), which is logged and counted, or "error": it counts as unreadable.
        video_backend, decode_deadline_s: as for ``bimba.data.isolated.read_videos_with``.
        workers: how many videos are decoded at a time while the model works.
        cache_gb: limit of the memory that videos decoded ahead take.
        journal: a folder that keeps each answer; with the same folder a run that was killed goes on where it was.
        token_cache: a folder that keeps the compressed tokens of videos for later runs.
        token_cache_gb: limit of its size.
        batch_questions: greedy questions about one video are answered together, in batches (``answer_each``). In 16
            bits rounding then depends on what a question was batched with, and a close call may go the other way; a run
            that was killed asks again at most the batch in flight.
        batch_size, max_batch_size: taken because the harness passes them, and not used: by itself an answer never
            depends on what it was batched with.

    Attributes:
        unreadable: path -> error of each video that could not be decoded.
        short: the videos that had fewer frames than asked for, so that some repeat.
        work: what answering took: videos decoded, seconds waited, and so on.
        resumed: how many answers came from the journal.
        questions: what each document (task and number) asked.
        fingerprint: of all that answers depend on in the checkpoint; empty until there is a journal that holds it.
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
        video_backend: str | None = None,
        decode_deadline_s: float | None = None,
        workers: int = WORKERS,
        cache_gb: float = CACHE_BYTES / 1024**3,
        journal: str | None = None,
        token_cache: str | None = None,
        token_cache_gb: float = STORE_BYTES / 1024**3,
        batch_questions: bool = False,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **unknown: Any,
    ):
        super().__init__()
        refuse_arguments(unknown, [name for name in inspect.signature(Bimba).parameters if name != "unknown"])
        check_short_videos(short_videos)
        check_arguments(
            {"num_frames": num_frames, "temporal_pooling": temporal_pooling, "workers": workers},
            {"cache_gb": cache_gb, "token_cache_gb": token_cache_gb},
            {"batch_questions": batch_questions},
        )
        read_videos_with(video_backend, decode_deadline_s)
        if str(batch_size) != "1" or max_batch_size not in (None, 1):
            logger.info(f"Batch size {batch_size} is not used; batch_questions batches the questions of a video.")
        self.engine = VideoQA.from_pretrained(
            pretrained,
            device=device,
            dtype=dtype,
            temporal_pooling=temporal_pooling,
            base=base,
            cache_bytes=int(cache_gb * 1024**3),
            store=TokenStore(token_cache, int(token_cache_gb * 1024**3)) if token_cache else None,
        )
        # Kept apart from the engine, which the harness deletes when it is done.
        self.reduction: tuple[int, int] = self.engine.model.config.reduction
        self.num_frames = self.engine.num_frames if num_frames is None else num_frames
        self._num_frames_asked = num_frames
        self.device: torch.device = self.engine.model.device
        self.short_videos = short_videos
        self.workers = workers
        self.batch_questions = batch_questions
        self.journal = journal
        self.work = Work()
        self.resumed = 0
        self._seconds, self._num_generated = 0.0, 0
        self.questions: dict[tuple[str, int], Question] = {}
        self.fingerprint = ""
        deal_by_video()
        if journal is None and os.environ.get("RANK", "0") == "0":
            logger.warning(
                "No journal: a run that is stopped starts from the beginning. With --model_args ...,journal=FOLDER "
                "each answer is kept there, and the same command goes on where it was."
            )

    @property
    def unreadable(self) -> dict[str, str]:
        return self.work.unreadable

    @property
    def short(self) -> set[str]:
        return self.work.short

    @property
    def incomplete(self) -> bool:
        """Some questions were scored as wrong because their videos could not be read."""
        return bool(self.unreadable)

    def generate_until(self, instances: list[Instance]) -> list[GenerationResult]:
        """Answers of all requests, in their order."""
        with ExitStack() as stack:
            # Before the work: another evaluation on the same folder is an error, not something to wait for.
            journal = stack.enter_context(Journal(self.journal, self.rank)) if self.journal else None
            requests = self._requests(instances)
            answers: dict[str, Generation | VideoDecodeError] = dict(journal.answers) if journal else {}
            # A request and its padding, or one that is listed twice, are one question.
            absent = list({r.key: r for r in requests if r.key not in answers}.values())
            self.resumed += len({r.key for r in requests}) - len(absent)
            if self.resumed:
                logger.info(f"{self.resumed} answers are in the journal {self.journal}; {len(absent)} are to be found.")
            self._answer(absent, answers, journal)
            if journal is not None:
                self.work.add_short(r.question.video for r in requests if r.key in journal.short)
        self._report()
        return [_result(answers[request.key], request.stops) for request in requests]

    def _answer(
        self, requests: list[Request], answers: dict[str, Generation | VideoDecodeError], journal: Journal | None
    ) -> None:
        """Adds an answer to each request; those of videos that cannot be read are not written to the journal."""
        started = time.perf_counter()
        found = answer_each(
            self.engine,
            [request.question for request in requests],
            short_videos=self.short_videos,
            workers=self.workers,
            work=self.work,
            batch_questions=self.batch_questions,
        )
        progress = tqdm(
            found, total=len(requests), desc="bimba", unit="question", mininterval=1, disable=self.rank != 0
        )
        for i, answer in progress:
            request = requests[i]
            answers[request.key] = answer
            if isinstance(answer, VideoDecodeError):
                logger.error(f"{request.asked['task']}, document {request.asked['doc_id']}, counts as wrong: {answer}")
            else:
                self._num_generated += answer.new_tokens
                if journal is not None:
                    journal.add(request.key, request.asked, answer, request.question.video in self.short)
        self._seconds += time.perf_counter() - started

    def _report(self) -> None:
        num_videos = len({os.path.realpath(question.video) for question in self.questions.values()})
        if self.unreadable:
            logger.error(
                f"INCOMPLETE: {len(self.unreadable)} of {num_videos} videos are unreadable, their questions count as "
                f"wrong: {listing(self.unreadable)}"
            )
        if self.short:
            logger.warning(
                f"{len(self.short)} of {num_videos} videos have fewer frames than were asked for, so frames repeat "
                f"(short_videos=repeat): {listing(sorted(self.short))}"
            )

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError(
            "bimba does not score given answers: lmms-eval up to 0.7.3 turns every log-likelihood into text before it "
            "is scored, so no such task can work. Use the task's generating variant (output_type: generate_until)."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError("bimba answers single questions; it has no tasks of several rounds.")

    def clean(self) -> None:
        """The harness asks for the memory back, in all processes, once all have their answers.

        Its results then hold under ``throughput`` what all processes together found. It calls every such count an
        average, so that the number of unreadable videos is ``avg_unreadable_videos``, and ``avg_incomplete`` is 1 if
        there are any.
        """
        mine = {"unreadable_videos": len(self.unreadable), "short_videos": len(self.short), "resumed": self.resumed}
        everyone = from_all(mine)
        counts = {name: sum(one[name] for one in everyone) for name in mine}
        counts["incomplete"] = int(counts["unreadable_videos"] > 0)
        speed = self._num_generated / self._seconds if self._seconds > 0 else 0.0
        log_metrics(self._seconds, self._num_generated, speed, counts)
        del self.engine
        super().clean()

    def _requests(self, instances: list[Instance]) -> list[Request]:
        """What is asked, and all at once whatever would stop the run after hours.

        Raises:
            BimbaError: videos that are missing, or what is not one question about one video.
            SequenceTooLongError: questions that are longer than the model takes.
        """
        self.fingerprint = fingerprint(self.engine.model, self.engine.processor) if self.journal else ""
        requests: list[Request] = []
        missing: dict[str, None] = {}
        repeats: Counter[tuple[str, int]] = Counter()
        for instance in instances:
            _, doc_to_messages, _, doc_id, task, split = instance.args
            doc = self.task_dict[task][split][doc_id]
            try:
                messages = ChatMessages(messages=doc_to_messages(doc))
            except (SystemExit, FileNotFoundError) as absent:
                missing[missing_video(absent)] = None
                continue
            question, stops = read_question(instance, messages, doc, self._num_frames_asked, self.num_frames)
            if not os.path.isfile(question.video):
                missing[question.video] = None
                continue
            is_padding = bool((instance.metadata or {}).get(PADDING))
            asked = {
                "task": task,
                "doc_id": doc_id,
                "repeat": 0 if is_padding else repeats[task, doc_id],
                "video": os.path.basename(question.video),
                "video_bytes": os.path.getsize(question.video),
                "prompt_hash": journal_key({"prompt": question.prompt}),
                "num_frames": question.num_frames,
                "short_videos": self.short_videos,
                "video_backend": checked_backend(None),
                "max_new_tokens": question.max_new_tokens,
                "sampling": question.sampling,
                "model": self.fingerprint,
            }
            if question.num_options is not None:
                asked["num_options"] = question.num_options
            elif self.batch_questions:
                asked["batch_questions"] = True
            repeats[task, doc_id] += not is_padding
            self.questions[task, doc_id] = question
            requests.append(Request(question, stops, asked))
        # Those of the other ranks too, so that all of them stop and none waits for another.
        missing.update(dict.fromkeys(video for video in dealt_videos() if not os.path.isfile(video)))
        if missing:
            what_helps = hint(instance.task_name for instance in instances)
            raise BimbaError(
                f"{len(missing)} videos are missing: {listing(missing)}. Nothing was evaluated.{what_helps}"
            )
        check_choices(requests, self.engine)
        check_lengths(requests, self.engine)
        if self.journal:  # another video of the same name and size is another question
            marks = content_marks(request.question.video for request in requests)
            for request in requests:
                request.asked["video_mark"] = marks[request.question.video]
        return requests


def _result(answer: Generation | VideoDecodeError, stops: list[str]) -> GenerationResult:
    if isinstance(answer, VideoDecodeError):
        return GenerationResult(text="")
    counts = TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=answer.new_tokens)
    return GenerationResult(cut_at(answer.text, stops), counts)
