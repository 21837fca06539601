"""[6] Which video is meant, to the frame, and what is read of it before the model works."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from bimba.data.video import checked_backend
from bimba.types import ShortVideos, VideoDecodeError

ENDS_BYTES = 64 * 1024  # read at the start and at the end of a file for its mark
BLOCK_BYTES, BLOCKS = 16 * 1024, 4  # and of so many blocks in between
READERS = 16  # files at a time: a network disk takes milliseconds for each block, whatever its size


class VideoKey(NamedTuple):
    """A file as it is now, and how it is sampled: what is equal here has the same frames."""

    path: str
    size: int
    mtime_ns: int
    num_frames: int
    short_videos: ShortVideos
    video_backend: str


@dataclass(frozen=True)
class Loaded:
    """A video on the CPU.

    Attributes:
        values: (T, 3, h, w) pixel values, or the tokens that they were encoded to in an earlier run: (tokens, C), or
            (T, H, W, C) where the compressor reads the question.
        are_tokens: which of the two.
        is_short: it had fewer frames than asked for, so that some repeat.
    """

    values: Tensor
    are_tokens: bool
    is_short: bool


def identify(path: str | os.PathLike[str], num_frames: int, short_videos: ShortVideos) -> VideoKey:
    """Links lead to the file they name.

    Raises:
        VideoDecodeError: there is no such file.
        BimbaError: the video backend that the environment names cannot run.
    """
    if not os.fspath(path):
        raise VideoDecodeError("The path of the video is empty; give the path of a video file.")
    file = Path(path).resolve()
    try:
        stat = file.stat()
    except OSError as error:
        what_helps = "Download it first" if "://" in os.fspath(path) else "Check the path"
        raise VideoDecodeError(
            f"{path}: {error.strerror}. {what_helps}; videos are read from local files only."
        ) from error
    return VideoKey(str(file), stat.st_size, stat.st_mtime_ns, num_frames, short_videos, checked_backend(None))


def content_marks(paths: Iterable[str]) -> dict[str, str]:
    """path -> ``content_mark``, of each file once, several at a time."""
    once = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(READERS) as readers:
        return dict(zip(once, readers.map(content_mark, once)))


def content_mark(path: str | os.PathLike[str]) -> str:
    """What tells a video file from another one, for all practical purposes: its size and a sample of its content.

    Its ends and blocks in between are read, 192 KiB of any file: the index of an mp4, which differs with every frame's
    size, lies at one of its ends. When the file was written does not count: a copy is the same video.

    Returns:
        32 hexadecimal digits; "unreadable" for a file that the system does not let us read, which has no frames either.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            last = max(0, size - ENDS_BYTES)
            places = [(0, ENDS_BYTES), (last, ENDS_BYTES)]
            places += [(last * i // (BLOCKS + 1), BLOCK_BYTES) for i in range(1, BLOCKS + 1)]
            for start, length in places:
                file.seek(start)
                digest.update(file.read(length))
    except OSError:  # the decoder says why, and its error is counted
        return "unreadable"
    return digest.hexdigest()[:32]
