"""The decoding process of ``bimba.data.isolated``: ``python -m bimba.data.isolated_child SOCKET LIFELINE``."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import sys
import tempfile
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import Any

import numpy as np

from bimba.types import BimbaError

# What schedulers and terminals send to all of a job's processes. The one that started this one decides what it means;
# were this one to die of it, a video would count as bad that is not.
_NOT_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


KEPT_BYTES = 256 * 1024**2  # of a video's pixels, that the next video's may be written over


def serve(connection: Connection) -> None:
    """Answers until the other side closes the socket."""
    memory = _Memory()
    while True:
        try:
            function, arguments, is_free, folder = connection.recv()
        except EOFError:
            return
        if not is_free:
            memory.let_go()
        try:
            os.chdir(folder or "/")  # it may have changed since this process started
        except OSError:  # or it is gone: then a relative path names nothing, and not a file of the folder before
            os.chdir("/")
        pixels: np.ndarray | None = None
        try:
            frames, notes = function(*arguments)
            pixels = frames.pixels
            object.__setattr__(frames, "pixels", None)  # they go another way
            reply: Any = (frames, notes)
        except BimbaError as error:  # raised where the question came from
            reply = error
        except Exception as error:  # noqa: BLE001  # in words: not every exception survives the way
            reply = f"{type(error).__name__}: {error}"
        if pixels is None:
            connection.send((reply, None))
            continue
        memory.write(pixels)
        connection.send((reply, pixels.shape))
        send_handle(connection, memory.handle, None)
        if memory.size > KEPT_BYTES:
            memory.let_go()
        del pixels, reply


class _Memory:
    """A file in memory that the other process reads: gone when nobody holds it open.

    It is written over while nobody reads it, as new memory costs several times what the copying costs.

    Attributes:
        handle: its file descriptor.
        size: bytes.
    """

    def __init__(self) -> None:
        self.handle, self.size = -1, 0
        self._mapped: mmap.mmap | None = None

    def write(self, pixels: np.ndarray) -> None:
        if pixels.nbytes > self.size:
            self.let_go()
            self.handle, self.size = _anonymous_file(), pixels.nbytes
            os.ftruncate(self.handle, self.size)
            self._mapped = mmap.mmap(self.handle, self.size)
        np.copyto(np.ndarray(pixels.shape, np.uint8, self._mapped), pixels)

    def let_go(self) -> None:
        if self._mapped is not None:
            self._mapped.close()
            os.close(self.handle)
        self.handle, self.size, self._mapped = -1, 0, None


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("bimba-frames")
    with tempfile.TemporaryFile() as file:  # macOS
        return os.dup(file.fileno())


def main() -> None:
    channel, lifeline = map(int, sys.argv[1:])
    for number in _NOT_OURS:
        signal.signal(number, signal.SIG_IGN)
    # The kernel ends this process when the other end of the pipe closes, as all ends of a process do that dies: also
    # while a codec hangs. (PR_SET_PDEATHSIG would end it with the thread that started it.)
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    try:
        if os.read(lifeline, 1) == b"":
            return  # it had died before
    except BlockingIOError:
        pass
    serve(Connection(channel))


if __name__ == "__main__":
    main()
