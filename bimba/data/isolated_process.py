"""This side of a decoding process: ``isolated_child.py`` is the other."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

import numpy as np

_LOOK_S = 0.5  # how often to see whether a process is alive whose end of the socket others may have inherited
_END_S = 5.0  # how long a killed process may take to be gone


class LostError(Exception):
    """What became of a decoding process; ``may_be_anothers``: it had read other videos before."""

    def __init__(self, what: str, may_be_anothers: bool = False):
        super().__init__(what)
        self.may_be_anothers = may_be_anothers


class DecoderProcess:
    """A decoding process and the two channels to it: a socket, and a pipe at whose end it ends."""

    def __init__(self) -> None:
        """Starts it.

        Raises:
            OSError: the system has no process or no file descriptor left for it. Nothing stays open.
        """
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
        with ExitStack() as kept, ExitStack() as given:
            ours, theirs = socket.socketpair()
            kept.callback(ours.close)
            given.callback(theirs.close)
            lifeline, our_lifeline = os.pipe()
            kept.callback(os.close, our_lifeline)
            given.callback(os.close, lifeline)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bimba.data.isolated_child", str(theirs.fileno()), str(lifeline)],
                pass_fds=(theirs.fileno(), lifeline),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},  # nothing from the folder we are in
            )
            kept.pop_all()
        self._lifeline: int | None = our_lifeline
        self._connection = Connection(ours.detach())
        self._is_used = False
        self._memory: mmap.mmap | None = None  # that of the last video's pixels

    def call(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], deadline_s: float
    ) -> tuple[Any, np.ndarray | None]:
        """The function's result or the exception that it raised, and the pixels that came with it.

        Raises:
            LostError: the process died or took too long.
        """
        try:
            self._connection.send((function, arguments, self._is_memory_free(), _here()))
            self._wait(deadline_s)
            reply, shape = self._connection.recv()
            pixels = None if shape is None else self._map(recv_handle(self._connection), shape)
        except BlockingIOError as error:
            raise LostError(f"took longer than {deadline_s:g} s") from error
        except (EOFError, OSError) as error:
            raise LostError(self._death(), may_be_anothers=self._is_used) from error
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
                raise LostError(f"took longer than {deadline_s:g} s")
            if self._connection.poll(min(left_s, _LOOK_S)):
                return self._limit_reading(end - time.monotonic() if deadline_s else 0.0)
            if self._process.poll() is not None:
                raise EOFError

    def _limit_reading(self, left_s: float) -> None:
        """From now on, reading raises a BlockingIOError where nothing comes for so long; 0: it waits.

        An answer that has begun comes at once, unless the process hangs or is stopped in the middle of it.
        """
        limit_s = max(left_s, _LOOK_S) if left_s else 0.0
        limit = struct.pack("@ll", int(limit_s), int(limit_s % 1 * 1e6))  # a timeval
        with socket.fromfd(self._connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def _death(self) -> str:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        if code >= 0:
            return f"ended with exit code {code}"
        names = {number.value: number.name for number in signal.Signals}
        memory = ", as when memory runs out" if -code == signal.SIGKILL else ""
        return f"died of signal {-code} ({names.get(-code, 'of no name')}{memory})"

    def keep_memory(self) -> None:
        """Leaves the last video's pixels where they are, whoever has them here: a forked process may have them, too."""
        self._memory = None

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """Kills it and forgets it; no zombie is left, unless it waits for a disk or a server that does not answer."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # nothing ends it then; it is gone when its read returns
            self._process.wait(_END_S)
        self.let_go()

    def let_go(self) -> None:
        """Closes this process's ends of the channels."""
        self._connection.close()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None


def _here() -> str | None:
    """The working directory, where relative paths start; None if it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None
