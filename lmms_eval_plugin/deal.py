"""Several processes: all questions about a video go to the same one, so that each video is decoded once.

The harness deals documents like cards: of W ranks, rank r gets r, r + W, r + 2W, ..., and the questions about a video
end up everywhere. Here every rank builds the requests of all documents (text only, seconds) and keeps those about its
own videos. Which these are, each rank computes for itself, alike: nothing is sent. Documents keep their numbers, so
results and journals do not depend on how many ranks there were; the harness pads ranks that have fewer questions.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any

from loguru import logger

if TYPE_CHECKING:
    from lmms_eval.api.instance import Instance
    from lmms_eval.api.task import Task

VIDEO_COST = 8  # reading and encoding a video takes about as long as so many answers
_MARK = "_deals_by_video"


class Dealer:
    """Deals videos to ranks, each to the one that has the least to do; a video that comes again goes where it was.

    Attributes:
        owner: the rank of each video (or of whatever else a request is about).
        load: how much each rank has to do.
    """

    def __init__(self, world_size: int):
        self.owner: dict[Hashable, int] = {}
        self.load = [0] * world_size

    def deal(self, videos: list[Hashable]) -> list[int]:
        """The rank of each question, given the video it is about."""
        questions = Counter(videos)  # in the order of their first question
        for video, count in sorted(questions.items(), key=lambda item: -item[1]):  # stable; the largest first
            if video not in self.owner:
                self.owner[video] = self.load.index(min(self.load))
                self.load[self.owner[video]] += VIDEO_COST
            self.load[self.owner[video]] += count
        return [self.owner[video] for video in videos]


_dealer: Dealer | None = None


def missing_video(absent: SystemExit | FileNotFoundError) -> str:
    """What one of the harness's own tasks said of a video that is not there; these are the two ways they say it."""
    return str(absent.code if isinstance(absent, SystemExit) else absent)


def dealt_videos() -> list[str]:
    """The video files of all ranks together, and what was said of missing ones; empty with one process."""
    return [] if _dealer is None else [video for video in _dealer.owner if isinstance(video, str)]


def deal_by_video() -> None:
    """Makes the harness deal by video in this process, if there are others. Called again, it starts afresh.

    If a later harness works otherwise, a warning says so, and its own dealing stays: right, but slower.
    """
    global _dealer
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    _dealer = Dealer(world_size) if world_size > 1 else None
    if _dealer is None:
        return
    try:
        from lmms_eval import evaluator
        from lmms_eval.api.task import Task

        build, iterate, create = Task.build_all_requests, Task.doc_iterator, evaluator.create_iterator
        for function in (build, iterate, create):
            if not {"rank", "world_size"} <= set(inspect.signature(function).parameters):
                raise AttributeError(f"{function.__name__} takes no rank and world_size")
    except (ImportError, AttributeError) as error:
        logger.warning(f"lmms-eval has changed ({error}); several ranks may decode the same video.")
        return
    if getattr(build, _MARK, False):
        return
    atexit.register(_leave)
    Task.build_all_requests = _build_and_deal(build)
    Task.doc_iterator = _over_all_documents(iterate)
    evaluator.create_iterator = _over_all_documents(create)


def _leave() -> None:
    """The harness leaves its process group open, and gloo's threads then abort the process at its end now and then."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _build_and_deal(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def build_all_requests(self: Task, *, rank: int = 0, world_size: int = 1, **kwargs: Any) -> None:
        if _dealer is None or world_size == 1:
            original(self, rank=rank, world_size=world_size, **kwargs)
            return
        original(self, rank=0, world_size=1, **kwargs)
        ranks = _dealer.deal([_what_about(instance, self) for instance in self._instances])
        self._instances = [instance for instance, its in zip(self._instances, ranks) if its == rank]

    setattr(build_all_requests, _MARK, True)
    return build_all_requests


def _over_all_documents(original: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The harness scores the documents of the rank; those without requests it leaves out, and so other ranks' too."""

    @functools.wraps(original)
    def iterator(*args: Any, rank: int = 0, world_size: int = 1, **kwargs: Any) -> Iterator[Any]:
        if _dealer is None:
            return original(*args, rank=rank, world_size=world_size, **kwargs)
        return original(*args, rank=0, world_size=1, **kwargs)

    return iterator


def _what_about(instance: Instance, task: Task) -> Hashable:
    """The video file that a chat request is about, or why it has none; for other requests, the document's number."""
    number = (instance.task_name, instance.doc_id)
    if len(instance.args) != 6 or not callable(instance.args[1]):
        return number
    _, doc_to_messages, _, doc_id, _, split = instance.args
    try:
        messages = doc_to_messages(task.dataset[split][doc_id])
    except (SystemExit, FileNotFoundError) as absent:  # a video is missing; the model names all of them
        return missing_video(absent)
    urls = [part["url"] for message in messages for part in message["content"] if part.get("type") == "video"]
    return urls[0] if urls and isinstance(urls[0], str) else number
