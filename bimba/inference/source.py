"""[6] Which video is meant, to the frame, and what is read of it before the model works."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from bimba.data.video import checked_backend
from bimba.types import ShortVideos, VideoDecodeError


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
        values: (T, 3, h, w) pixel values, or the (tokens, C) tokens that they were encoded to in an earlier run.
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
    file = Path(path).resolve()
    try:
        stat = file.stat()
    except OSError as error:
        raise VideoDecodeError(
            f"{path}: {error.strerror}. Check the path; videos are read from local files only."
        ) from error
    return VideoKey(str(file), stat.st_size, stat.st_mtime_ns, num_frames, short_videos, checked_backend(None))
