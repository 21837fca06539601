"""torchcodec in its exact mode, if it is installed: it scans the packets first, as our probe does."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import numpy as np

from bimba.data.video.files import FETCH_AGAIN, REENCODE
from bimba.data.video.stream import Stream, first_line
from bimba.types import VideoDecodeError

READS_WHAT_IT_REFUSES = False  # by name either: of more than 8 bits its pixels are not those of the others
_INSTALL = 'install it with: pip install "bimba[torchcodec]"; it needs the shared libraries of FFmpeg 4 to 8'


@cache
def unavailable() -> str | None:
    if find_spec("torchcodec") is None:
        return f"torchcodec is not installed; {_INSTALL}"
    try:
        import torchcodec
    except (ImportError, OSError, RuntimeError) as error:
        return f"torchcodec cannot be loaded ({first_line(error)}); {_INSTALL}"
    # older ones raise above where there is no FFmpeg, newer ones when the first video is opened
    return None if getattr(torchcodec, "ffmpeg_major_version", 1) else f"torchcodec finds no FFmpeg; {_INSTALL}"


def refuses(stream: Stream) -> str | None:
    if not stream.is_indexed:
        return "only decoding tells which frames the file holds"
    if stream.has_false_keys:
        return "it has key frames with which decoding cannot begin (intra refresh)"
    return f"it rounds colours of {stream.bits} bits otherwise than decord and PyAV do" if stream.bits > 8 else None


class Reader:
    """Reads frames of one stream.

    Attributes:
        spans_s: (n, 2) seconds, when each frame appears and disappears.
        average_fps: frames per second.

    Raises:
        VideoDecodeError: torchcodec cannot read it.
    """

    def __init__(self, stream: Stream):
        from torchcodec.decoders import VideoDecoder

        self._stream = stream
        self.spans_s = stream.spans_s
        try:
            self._decoder = VideoDecoder(
                str(stream.path), stream_index=stream.index, dimension_order="NHWC", num_ffmpeg_threads=1
            )
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise self._undecodable(first_line(error)) from error
        if len(self._decoder) != len(self.spans_s):
            raise self._undecodable(f"it counts {len(self._decoder)} frames, and {len(self.spans_s)} are shown")
        self.average_fps = stream.average_fps

    def read(self, indices: np.ndarray) -> np.ndarray:
        """(T, height, width, 3) uint8 of (T,) ascending indices.

        Raises:
            VideoDecodeError: torchcodec cannot decode them, or returns frames of other moments.
        """
        try:
            batch = self._decoder.get_frames_at(indices.tolist())
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise self._undecodable(first_line(error)) from error
        times_s = batch.pts_seconds.numpy() - float(self._stream.pts[0] * self._stream.time_base)
        if not np.allclose(times_s, self.spans_s[indices, 0], rtol=0, atol=1e-3):
            raise self._undecodable("it returns frames of other moments than those asked for")
        return np.asarray(batch.data.numpy())

    def _undecodable(self, reason: str) -> VideoDecodeError:
        return VideoDecodeError(
            f"{self._stream.path}: its {self._stream.codec} video track cannot be decoded by torchcodec ({reason}). "
            f"{FETCH_AGAIN} {REENCODE}"
        )
