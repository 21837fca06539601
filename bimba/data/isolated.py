"""[1] Decoding where it can do no harm: in a process of its own, so that a codec that crashes or hangs costs one video.

Each process that reads videos keeps as many decoding processes as it reads videos at a time. They are new processes,
never forked ones, that import numpy and the decoders alone, and answer through a socket; pixels come in memory that
both share, so nothing is copied on this side. Where one dies or takes too long, its video is a ``VideoDecodeError``,
and the next video gets a new process. They end with the process that started them, however that ends.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from bimba.data.isolated_process import DecoderProcess, LostError
from bimba.data.video import VARIABLE as BACKEND
from bimba.data.video import Note, checked_backend, decode, say
from bimba.data.video import read_frames as read_frames_here
from bimba.types import BimbaError, Frames, ShortVideos, VideoDecodeError

ISOLATE, DEADLINE = "BIMBA_ISOLATE_DECODING", "BIMBA_DECODE_DEADLINE_S"
DEADLINE_S = 300.0


def read_frames(
    path: str | os.PathLike[str],
    num_frames: int,
    start_s: float | None = None,
    end_s: float | None = None,
    short_videos: ShortVideos = "error",
    backend: str | None = None,
    deadline_s: float | None = None,
) -> Frames:
    """As ``bimba.data.video.read_frames``, in another process; ``BIMBA_ISOLATE_DECODING=0`` reads in this one.

    Args:
        deadline_s: how many seconds a video may take; 0: any number; None: what the environment variable
            BIMBA_DECODE_DEADLINE_S says, or 300.

    Raises:
        VideoDecodeError: also where the decoder crashed, took too long, or raised what it should not.
        BimbaError: as there, a deadline that is no number of seconds, or no process could be started.
    """
    if os.environ.get(ISOLATE, "1") == "0":
        return read_frames_here(path, num_frames, start_s, end_s, short_videos, backend)
    limit_s = _deadline(deadline_s)
    arguments = (os.fspath(path), num_frames, start_s, end_s, short_videos, checked_backend(backend))
    frames, notes = call(decode, *arguments, deadline_s=limit_s, what=str(path))
    say(notes)
    return frames


def read_videos_with(
    video_backend: str | None = None, deadline_s: float | None = None, isolate: bool | None = None
) -> None:
    """Sets how this process, and those that it starts, read videos; what is None stays as it is.

    Args:
        video_backend: "auto", "decord", "pyav" or "torchcodec".
        deadline_s: how many seconds a video may take; 0: any number.
        isolate: whether videos are decoded in processes of their own.

    Raises:
        BimbaError: there is no such backend, or it cannot run here; or the deadline is no number of seconds.
    """
    if video_backend is not None:
        os.environ[BACKEND] = checked_backend(video_backend)
    if deadline_s is not None:
        os.environ[DEADLINE] = f"{_deadline(deadline_s):g}"
    if isolate is not None:
        os.environ[ISOLATE] = str(int(isolate))


def start_early() -> None:
    """Starts a decoding process before there is a video, so that it gets ready while this one imports or loads a model.

    Raises:
        BimbaError: no process could be started.
    """
    if os.environ.get(ISOLATE, "1") != "0":
        _give_back(_start())


def call(
    function: Callable[..., tuple[Frames, list[Note]]],
    *arguments: Any,
    deadline_s: float,
    what: str,
    anew: bool = False,
) -> tuple[Frames, list[Note]]:
    """What a function of a module returns in a decoding process that is free, or in a new one.

    Args:
        deadline_s: seconds; 0: any number.
        what: the file's name, for errors.
        anew: in a new one. A video whose process dies is tried in a new one before it is to blame.

    Raises:
        VideoDecodeError: the process died, took too long, or the function raised anything but a BimbaError.
        BimbaError: what the function raises; or no process could be started.
    """
    process = _start() if anew else _take()
    try:
        reply, pixels = process.call(function, arguments, deadline_s)
    except LostError as loss:
        process.end()
        if loss.may_be_anothers:  # one that had died while it waited, or that an earlier video had left damaged
            return call(function, *arguments, deadline_s=deadline_s, what=what, anew=True)
        raise VideoDecodeError(
            f"{what}: the decoder {loss}. The file is damaged, or the codec has a fault. Re-encode it, or leave it out."
        ) from loss
    except BaseException:  # Ctrl-C: its answer would be taken for that to the next question
        process.end()
        raise
    _give_back(process)
    if isinstance(reply, BimbaError):
        raise reply
    if isinstance(reply, str):
        raise VideoDecodeError(f"{what}: the decoder failed ({reply}). Re-encode the file, or leave it out.")
    frames, notes = reply
    object.__setattr__(frames, "pixels", pixels)  # frozen for readers; they came apart on the way
    return frames, notes


def _deadline(deadline_s: float | None) -> float:
    stated: Any = os.environ.get(DEADLINE) or DEADLINE_S if deadline_s is None else deadline_s
    try:
        limit_s = float(stated)
    except ValueError:
        limit_s = -1.0
    if not limit_s >= 0:
        raise BimbaError(
            f"A video may take {stated!r} seconds to decode ({DEADLINE}, deadline_s); expected a number, 0 for any."
        )
    return limit_s


_all: WeakSet[DecoderProcess] = WeakSet()
_free: list[DecoderProcess] = []
_lock = threading.Lock()


def _take() -> DecoderProcess:
    with _lock:
        while _free:
            process = _free.pop()
            if process.is_alive():
                return process
            process.end()
    return _start()


def _start() -> DecoderProcess:
    try:
        process = DecoderProcess()
    except OSError as error:
        raise BimbaError(
            f"No decoding process could be started: {error.strerror or error}. Raise the limit (ulimit -n, ulimit -u), "
            f"read fewer videos at a time, or decode in this process ({ISOLATE}=0)."
        ) from error
    with _lock:
        _all.add(process)
    return process


def _give_back(process: DecoderProcess) -> None:
    with _lock:
        _free.append(process)


def _forget() -> None:
    """A forked child has copies of its parent's channels; were they to stay open, so would the parent's processes."""
    global _lock
    _lock = threading.Lock()
    for process in list(_all):
        process.let_go()
    _free.clear()


def _keep_memory() -> None:
    """Pixels that nobody has here any more may be a forked child's, in the same memory."""
    with _lock:
        for process in _all:
            process.keep_memory()


os.register_at_fork(after_in_child=_forget, after_in_parent=_keep_memory)
