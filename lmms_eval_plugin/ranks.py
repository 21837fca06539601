"""Several processes: what each must know of the others before the harness starts, and after it has ended.

Nothing here runs while questions are answered, when one process may be hours behind another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from bimba.types import BimbaError

if TYPE_CHECKING:
    from bimba.inference.schedule import Question, Work

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # the others wait for the slowest, whose videos may take hours longer


@dataclass(frozen=True)
class Seen:
    """What one process did.

    Attributes:
        work: its ``bimba.inference.schedule.Work``.
        resumed: how many of its answers came from the journal.
        asked: task -> document -> video file, prompt, number of frames.
    """

    work: dict[str, Any]
    resumed: int
    asked: dict[str, dict[int, tuple[str, str, int]]]


class Asked(Protocol):
    """What is read of a ``lmms_eval_plugin.models.bimba.Bimba``."""

    work: Work
    resumed: int
    questions: dict[tuple[str, int], Question]
    num_frames: int


def all_asked(seen: Sequence[Seen]) -> dict[str, dict[int, tuple[str, str, int]]]:
    """What was asked in all processes together."""
    asked: dict[str, dict[int, tuple[str, str, int]]] = {}
    for one in seen:
        for task, documents in one.asked.items():
            asked.setdefault(task, {}).update(documents)
    return asked


def join(device: str) -> int:
    """This process's number; several, those of ``torchrun`` or ``accelerate launch``, find each other first.

    The harness takes the group that is there; its own would give up on a slow process after half an hour.

    Args:
        device: as for ``VideoQA.from_pretrained``; what the harness counts lies there.
    """
    if world_size() == 1:
        return 0
    import torch
    from torch import distributed

    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not distributed.is_initialized():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    return distributed.get_rank()


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_does(work: Callable[[], T]) -> T | None:
    """What ``work`` returns on the first process; None on the others, which wait. Each must call this.

    Raises:
        BimbaError: that of ``work``, on all.
    """
    done, error = None, None
    if is_first():
        try:
            done = work()
        except BimbaError as raised:
            error = raised
    said = as_first_says(None if error is None else str(error))
    if said is not None:
        raise BimbaError(said) from error
    return done


def is_first() -> bool:
    """After ``join``: of the processes the one that writes."""
    if world_size() == 1:
        return True
    from torch import distributed

    return distributed.get_rank() == 0


def as_first_says(value: Any) -> Any:
    """What the first process gives, on all; each must call this."""
    if world_size() == 1:
        return value
    from torch import distributed

    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]


def from_all(value: Any) -> list[Any]:
    """What each process gives, on all of them; each must call this."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    everyone: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, value)
    return everyone


def gather(model: Asked) -> list[Seen] | None:
    """What each process did, on the first one; None on the others. Each must call this, after the harness has ended."""
    asked: dict[str, dict[int, tuple[str, str, int]]] = {}
    for (task, document), question in model.questions.items():
        num_frames = question.num_frames or model.num_frames
        asked.setdefault(task, {})[document] = (question.video, question.prompt, num_frames)
    mine = Seen(asdict(model.work), model.resumed, asked)
    if world_size() == 1:
        return [mine]
    from torch import distributed

    everyone: list[Any] | None = [None] * distributed.get_world_size() if distributed.get_rank() == 0 else None
    distributed.gather_object(mine, everyone, dst=0)
    return everyone
