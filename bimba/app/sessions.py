"""Who has which video open, and when the video's file goes.

A session is an open page. It has one video at a time, and all that is kept of it is here: bounded in the number of
sessions, of questions each shows, and of bytes (pictures made small; tokens are in the engines' bounded caches). Files
of the same content have the same path, whoever uploaded them, so a file goes with the last session that has it.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bimba.inference.source import VideoKey
from bimba.types import Frames

MAX_SESSIONS = 32
MAX_EXCHANGES = 50  # questions shown
MAX_WAITING = 8  # questions of one session that are not answered yet
State = Literal["waiting", "working", "done", "failed"]


@dataclass
class Stage:
    """A line of what has been done with the video."""

    text: str
    state: State = "working"


@dataclass
class Answer:
    """What one model answers; ``text`` grows while it does."""

    label: str
    state: State = "waiting"
    text: str = ""
    probabilities: dict[str, float] | None = None
    seconds: float | None = None


@dataclass
class Exchange:
    question: str
    options: Sequence[str]
    answers: list[Answer]

    @property
    def is_open(self) -> bool:
        return any(answer.state in ("waiting", "working") for answer in self.answers)


@dataclass
class Selected:
    """A model's selection map: the frames that it covers, and the page to look through it."""

    frames: list[tuple[float, str, str, float]]  # time in seconds, picture, heat (data URIs), share of what was added
    timeline: str  # an SVG
    page: str
    question: str | None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))  # in the page's address: nobody guesses it


@dataclass
class Reading:
    """The video of a session, and everything asked about it.

    Attributes:
        pictures: (time in seconds, data URI) of the frames.
        frames: number of frames -> they, made small, which maps are drawn over.
        reads: how often each model has read the video, by its label.
        maps: by the model's label: the map, or why there is none.
        ready: it can be asked about, or never will be (``failed``).
    """

    path: Path
    size: int
    stages: list[Stage] = field(default_factory=list)
    pictures: list[tuple[float, str]] = field(default_factory=list)
    frames: dict[int, Frames] = field(default_factory=dict)
    keys: dict[str, VideoKey] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)
    maps: dict[str, Selected | str] = field(default_factory=dict)
    exchanges: list[Exchange] = field(default_factory=list)
    num_answered: int = 0
    num_forgotten: int = 0
    ready: threading.Event = field(default_factory=threading.Event)
    failed: bool = False
    closed: bool = False
    used: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return self.path.name

    def plain(self, error: BaseException) -> str:
        """An error's message with the name that the visitor knows the file by."""
        return str(error).replace(str(self.path), self.name).replace(str(self.path.resolve()), self.name)

    def add(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        if len(self.exchanges) > MAX_EXCHANGES:
            self.exchanges.pop(0)
            self.num_forgotten += 1


class Sessions:
    """Session -> its ``Reading``.

    Args:
        folder: where uploads lie; nothing outside is ever removed.
        forget: is given the keys of videos that no session has any more.
        keep_s: how long a video is kept that nobody asks about.
    """

    def __init__(self, folder: Path, forget: Callable[[Sequence[VideoKey]], None], keep_s: float):
        self.folder, self.keep_s = folder.resolve(), keep_s
        self._forget = forget
        self._readings: OrderedDict[str, Reading] = OrderedDict()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._readings)

    def open(self, session: str, path: Path) -> Reading:
        """A session has a new video; its old one goes, and so does the session unused longest if there are too many."""
        reading = Reading(path, path.stat().st_size)
        with self._lock:
            old = self._readings.pop(session, None)
            self._readings[session] = reading
            if old is not None:
                self._let_go(old)
            while len(self._readings) > MAX_SESSIONS:
                self._let_go(self._readings.popitem(last=False)[1])
        return reading

    def get(self, session: str) -> Reading | None:
        with self._lock:
            reading = self._readings.get(session)
            if reading is not None:
                reading.used = time.monotonic()
                self._readings.move_to_end(session)
            return reading

    def close(self, session: str) -> None:
        with self._lock:
            if (reading := self._readings.pop(session, None)) is not None:
                self._let_go(reading)

    def tidy(self) -> None:
        """Removes what has not been used for ``keep_s``: sessions, and uploads that no session ever opened."""
        with self._lock:
            for session, reading in list(self._readings.items()):
                if time.monotonic() - reading.used > self.keep_s:
                    self.close(session)
            held = {reading.path.resolve() for reading in self._readings.values()}
            for file in [path for path in self.folder.rglob("*") if path.is_file()]:
                if file not in held and time.time() - file.stat().st_mtime > self.keep_s:
                    self._remove(file)

    def selected(self, token: str) -> Selected | None:
        """The map with this address."""
        with self._lock:
            maps = [found for reading in self._readings.values() for found in reading.maps.values()]
        same = [found for found in maps if isinstance(found, Selected) and secrets.compare_digest(found.token, token)]
        return same[0] if same else None

    def _let_go(self, reading: Reading) -> None:
        reading.closed = True
        if any(other.path == reading.path for other in self._readings.values()):
            return
        self._forget(list(reading.keys.values()))
        self._remove(reading.path.resolve())

    def _remove(self, file: Path) -> None:
        if not file.is_relative_to(self.folder):
            return
        file.unlink(missing_ok=True)
        if file.parent != self.folder and not any(file.parent.iterdir()):
            shutil.rmtree(file.parent, ignore_errors=True)
