"""[1] Decoding where it can do no harm: in a process of its own, so that a codec that crashes or hangs costs one video.

Each process that reads videos keeps as many decoding processes as it reads videos at a time. They are new processes,
never forked ones, that import numpy and the decoders alone, and answer through a socket; pixels come in memory that
both share, so nothing is copied on this side. Where one dies or takes too long, its video is a ``VideoDecodeError``,
and the next video gets a new process. They end with the process that started them, however that ends.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

import numpy as np

from bimba.data.video import VARIABLE as BACKEND
from bimba.data.video import Note, checked_backend, decode, say
from bimba.data.video import read_frames as read_frames_here
from bimba.types import BimbaError, Frames, ShortVideos, VideoDecodeError

ISOLATE, DEADLINE = "BIMBA_ISOLATE_DECODING", "BIMBA_DECODE_DEADLINE_S"
DEADLINE_S = 300.0
_LOOK_S = 0.5  # how often to see whether a process is alive whose end of the socket others may have inherited


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
        VideoDecodeError: also where the decoder crashed or took too long.
        BimbaError: as there, or a deadline that is no number of seconds.
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
        VideoDecodeError: the process died, or took too long.
        Exception: what the function raises.
    """
    process = _start() if anew else _take()
    try:
        reply, pixels = process.call(function, arguments, deadline_s)
    except _LostError as loss:
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
    if isinstance(reply, BaseException):
        raise reply
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


class _LostError(Exception):
    """What became of a decoding process; ``may_be_anothers``: it had read other videos before."""

    def __init__(self, what: str, may_be_anothers: bool = False):
        super().__init__(what)
        self.may_be_anothers = may_be_anothers


class _Process:
    """A decoding process and the two channels to it: a socket, and a pipe at whose end it ends."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bimba.data.isolated_child", str(theirs.fileno()), str(lifeline)],
                pass_fds=(theirs.fileno(), lifeline),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},  # nothing from the folder we are in
            )
        finally:
            theirs.close()
            os.close(lifeline)
        self._connection = Connection(ours.detach())
        self._is_used = False
        self._memory: mmap.mmap | None = None  # that of the last video's pixels

    def call(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], deadline_s: float
    ) -> tuple[Any, np.ndarray | None]:
        """The function's result or the exception that it raised, and the pixels that came with it.

        Raises:
            _LostError: the process died or took too long.
        """
        try:
            self._connection.send((function, arguments, self._is_memory_free()))
            self._wait(deadline_s)
            reply, shape = self._connection.recv()
            pixels = None if shape is None else self._map(recv_handle(self._connection), shape)
        except (EOFError, OSError) as error:
            raise _LostError(self._death(), may_be_anothers=self._is_used) from error
        self._is_used = True
        return reply, pixels

    def _map(self, handle: int, shape: tuple[int, ...]) -> np.ndarray:
        """The array in a piece of memory that the process filled; it lives as long as the array."""
        try:
            self._memory = mmap.mmap(handle, int(np.prod(shape)))
        finally:
            os.close(handle)
        return np.frombuffer(self._memory, dtype=np.uint8).reshape(shape)

    def _is_memory_free(self) -> bool:
        """Whether nobody has the pixels of the last video any more, so that the next one's may take their place."""
        if self._memory is None:
            return False
        try:
            self._memory.close()
        except BufferError:  # an array looks into it
            return False
        finally:
            self._memory = None
        return True

    def _wait(self, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        while True:
            left_s = end - time.monotonic() if deadline_s else _LOOK_S
            if left_s <= 0:
                raise _LostError(f"took longer than {deadline_s:g} s")
            if self._connection.poll(min(left_s, _LOOK_S)):
                return
            if self._process.poll() is not None:
                raise EOFError

    def _death(self) -> str:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        if code >= 0:
            return f"ended with exit code {code}"
        memory = ", as when memory runs out" if -code == signal.SIGKILL else ""
        return f"died of signal {-code} ({signal.Signals(-code).name}{memory})"

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """Kills it and forgets it; no zombie is left."""
        self._process.kill()
        self._process.wait()
        self.let_go()

    def let_go(self) -> None:
        """Closes this process's ends of the channels."""
        _all.discard(self)
        self._connection.close()
        os.close(self._lifeline)


_all: set[_Process] = set()
_free: list[_Process] = []
_lock = threading.Lock()


def _take() -> _Process:
    with _lock:
        while _free:
            process = _free.pop()
            if process.is_alive():
                return process
            process.end()
    return _start()


def _start() -> _Process:
    process = _Process()
    _all.add(process)
    return process


def _give_back(process: _Process) -> None:
    with _lock:
        _free.append(process)


def _forget() -> None:
    """A forked child has copies of its parent's channels; were they to stay open, so would the parent's processes."""
    global _lock
    _lock = threading.Lock()
    for process in list(_all):
        process.let_go()
    _free.clear()


os.register_at_fork(after_in_child=_forget)
