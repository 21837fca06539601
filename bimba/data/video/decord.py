"""decord, which the published numbers were made with: it counts packets, so it is right on ordinary files only."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata

import numpy as np

from bimba.data.video.files import FETCH_AGAIN, REENCODE
from bimba.data.video.stream import Stream, first_line
from bimba.types import VideoDecodeError

READS_WHAT_IT_REFUSES = True  # by name, with a warning: as it did for the published numbers
_CODECS = ("h264", "hevc", "mpeg4", "vp8", "vp9")  # what was compared with the others, frame by frame


@cache
def unavailable() -> str | None:
    try:
        metadata.version("decord2")
        return "decord2 is installed, which returns wrong frames, and others each time: pip uninstall decord2"
    except metadata.PackageNotFoundError:
        pass
    try:
        import decord  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: a library that it needs
        return f"decord cannot be imported ({first_line(error)}); pip install decord"
    return None


def refuses(stream: Stream) -> str | None:
    if stream.oddities:
        return "; ".join(stream.oddities)
    return None if stream.codec in _CODECS else f"its frames were never compared on codec {stream.codec}"


class Reader:
    """Reads frames of one stream.

    Attributes:
        spans_s: (n, 2) seconds, when each packet that decord counts as a frame appears and disappears.
        average_fps: frames per second.

    Raises:
        VideoDecodeError: decord cannot read it.
    """

    def __init__(self, stream: Stream):
        import decord

        # AssertionError: decord asserts that the frame count is positive.
        self._errors = (RuntimeError, ValueError, IndexError, OSError, AssertionError, decord.DECORDError)
        self._stream = stream
        decord.logging.set_level(decord.logging.QUIET)
        try:
            self._reader = decord.VideoReader(str(stream.path), ctx=decord.cpu(0), num_threads=1)
            spans = self._reader.get_frame_timestamp(range(len(self._reader)))
            self.spans_s = np.asarray(spans, dtype=np.float64)
            self.average_fps = float(self._reader.get_avg_fps())
        except self._errors as error:
            raise self._undecodable(error) from error

    def read(self, indices: np.ndarray) -> np.ndarray:
        """(T, height, width, 3) uint8 of (T,) ascending indices.

        Raises:
            VideoDecodeError: decord cannot decode them.
        """
        try:
            return _to_numpy(self._reader.get_batch(indices))
        except self._errors as error:
            raise self._undecodable(error) from error

    def _undecodable(self, error: BaseException) -> VideoDecodeError:
        return VideoDecodeError(
            f"{self._stream.path}: its {self._stream.codec} video track cannot be decoded ({_cause(error)}). The file "
            f"is truncated or damaged, or decord does not know the codec. {FETCH_AGAIN} {REENCODE}"
        )


def _to_numpy(batch: object) -> np.ndarray:
    """decord's own array, or the torch tensor that it hands out where another library set ``decord.bridge``."""
    return batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)


def _cause(error: BaseException) -> str:
    """The message without decord's time stamps, C++ source lines and stack trace."""
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", first_line(error)).strip()
