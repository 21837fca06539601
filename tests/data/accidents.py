"""What befalls decoders: functions that a decoding process runs in the place of ``bimba.data.video.decode``."""

from __future__ import annotations

import os
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

from bimba.data import isolated
from bimba.data.video import decode


class Odd(Exception):
    """One that does not survive being pickled."""

    def __init__(self, one: int, two: int):
        super().__init__(f"{one} and {two}")


def decode_or_worse(path: str, *arguments: Any) -> Any:
    """What the file's name says, or its frames."""
    match Path(path).stem.partition("_")[0]:
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            time.sleep(600)
        case "stall":
            os.write(int(sys.argv[1]), struct.pack("!i", 100))  # the length of an answer, and no answer
            time.sleep(600)
        case "exit":
            os._exit(3)
        case "full":
            raise MemoryError("full")
        case "odd":
            raise Odd(1, 2)
    return decode(path, *arguments)


def parent_of_an_idle_decoder(ready: str, video: str) -> None:
    """Leaves a decoding process that waits and says its number; for a process that is then killed."""
    isolated.read_frames(video, 2)
    _say_and_wait(ready)


def parent_of_a_busy_decoder(ready: str, video: str) -> None:
    """Leaves a decoding process at work and says its number."""
    question = {"deadline_s": 0.0, "what": "hang"}
    threading.Thread(target=isolated.call, args=(decode_or_worse, "hang"), kwargs=question, daemon=True).start()
    while not isolated._all:
        time.sleep(0.01)
    _say_and_wait(ready)


def _say_and_wait(ready: str) -> None:
    (process,) = isolated._all
    Path(ready).write_text(str(process._process.pid))
    time.sleep(600)
