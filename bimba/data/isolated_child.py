"""The decoding process of ``bimba.data.isolated``: ``python -m bimba.data.isolated_child SOCKET LIFELINE``."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import Any

import numpy as np

# What schedulers and terminals send to all of a job's processes. The one that started this one decides what it means;
# were this one to die of it, a video would count as bad that is not.
_NOT_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def serve(connection: Connection) -> None:
    """Answers until the other side closes the socket."""
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        pixels: np.ndarray | None = None
        try:
            frames, notes = function(*arguments)
            pixels = frames.pixels
            object.__setattr__(frames, "pixels", None)  # they go another way
            reply: Any = (frames, notes)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is raised where the question came from
            reply = error
        if pixels is None:
            connection.send((reply, None))
            continue
        with _shared(pixels) as handle:
            connection.send((reply, pixels.shape))
            send_handle(connection, handle, None)
        del pixels, reply


@contextmanager
def _shared(pixels: np.ndarray) -> Iterator[int]:
    """A file in memory that holds the pixels; it is gone when nobody holds it open."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("bimba-frames")
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    try:
        os.ftruncate(handle, pixels.nbytes)
        with mmap.mmap(handle, pixels.nbytes) as memory:
            np.copyto(np.ndarray(pixels.shape, np.uint8, memory), pixels)
        yield handle
    finally:
        os.close(handle)


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
