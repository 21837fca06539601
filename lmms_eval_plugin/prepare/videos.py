"""Is every question's video where its task looks for it? The task itself is asked, so that this cannot differ."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bimba.types import BimbaError, VideoDecodeError
from lmms_eval_plugin.prepare.archives import is_pointer
from lmms_eval_plugin.prepare.sources import Source

PROBES = min(8, os.cpu_count() or 1)


@dataclass
class Videos:
    """The videos that questions are about.

    Attributes:
        present: path below the benchmark's folder, as ``Source.video`` says -> the file that the task takes.
        missing: those that the task does not find.
        broken: those that it finds, and what is wrong: empty, unreadable, or a Git LFS pointer.
    """

    present: dict[str, Path] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def wanted(self) -> list[str]:
        return [*self.missing, *self.broken]

    @property
    def total(self) -> int:
        return len(self.present) + len(self.wanted)


def look_up(source: Source, rows: Sequence[dict[str, Any]]) -> Videos:
    """Asks the task for the video of each row. HF_HOME must be set: the harness's modules read it when imported.

    Raises:
        BimbaError: a row has no such column.
    """
    with _no_word_lists():
        task = importlib.import_module(f"lmms_eval_plugin.tasks.{source.folder_of_task.name}.task")
    videos = Videos()
    seen: set[str] = set()
    for row in rows:
        try:
            name = source.video(row)
        except KeyError as error:
            raise BimbaError(f"A question of {source.name} has no column {error}, but {', '.join(row)}.") from error
        if name in seen:
            continue
        seen.add(name)
        try:
            path = Path(task.doc_to_visual(row)[0])
        except (SystemExit, FileNotFoundError):  # how the harness's tasks say that a video is missing
            videos.missing.append(name)
            continue
        if not path.is_file():
            videos.missing.append(name)
        elif path.stat().st_size == 0:
            videos.broken[name] = "empty"
        elif not os.access(path, os.R_OK):
            videos.broken[name] = "not readable: see its permissions"
        elif is_pointer(path):
            videos.broken[name] = "a Git LFS pointer"
        else:
            videos.present[name] = path
    return videos


def unreadable(videos: Videos) -> dict[str, str]:
    """Opens every video that is present, several at a time, without decoding it: path -> why it is none."""
    from bimba.data.video import check_video

    def why(path: Path) -> str | None:
        try:
            check_video(path)
        except VideoDecodeError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(PROBES) as pool:
        found = zip(videos.present, pool.map(why, videos.present.values()))
        return {name: error for name, error in found if error is not None}


@contextmanager
def _no_word_lists() -> Iterator[None]:
    """The harness's NExT-QA module fetches nltk's word lists whenever it is imported; the task here reads none."""
    import nltk

    download = nltk.download
    nltk.download = lambda *args, **kwargs: False
    try:
        yield
    finally:
        nltk.download = download
