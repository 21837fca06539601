"""PyAV, exactly: frames are found by when they are shown, and where that is not known, by counting them.

Pixels are decord's and torchcodec's to the bit: the same filter of FFmpeg's converts them, by the file's own colour
matrix and after turning them as the file says. (PyAV's ``to_ndarray`` does neither.)
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np

from bimba.data.video.files import FETCH_AGAIN, REENCODE
from bimba.data.video.stream import Stream, first_line, spans_of
from bimba.types import VideoDecodeError

READS_WHAT_IT_REFUSES = True  # which is nothing
_HALF: list[tuple[str, ...]] = [("hflip",), ("vflip",)]
_TURNS: dict[int, list[tuple[str, ...]]] = {
    90: [("transpose", "cclock")],
    -90: [("transpose", "clock")],
    180: _HALF,
    -180: _HALF,
}


def unavailable() -> str | None:
    return None


def refuses(stream: Stream) -> str | None:
    return None


class Reader:
    """Reads frames of one stream.

    Attributes:
        spans_s: (n, 2) seconds, when each frame appears and disappears.
        average_fps: frames per second.

    Raises:
        VideoDecodeError: nothing can be decoded.
    """

    def __init__(self, stream: Stream):
        self.stream = stream
        self.spans_s = stream.spans_s if stream.is_indexed else self._count()
        length_s = float(self.spans_s[-1, 1])
        self.average_fps = stream.average_fps or (len(self.spans_s) / length_s if length_s > 0 else 0.0)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """(T, height, width, 3) uint8 of (T,) ascending indices.

        Raises:
            VideoDecodeError: a frame cannot be decoded, or is damaged.
        """
        unique, places = np.unique(indices, return_inverse=True)
        if self.stream.is_indexed:
            try:
                found = self._collect(self._decode_at(unique, jump=True), unique)
            except _LostError:
                found = self._collect(self._decode_at(unique, jump=False), unique)
        else:
            numbered = enumerate(self._decode_all(int(unique[-1]) + 1))
            wanted = set(unique.tolist())
            found = self._collect(((i, frame) for i, frame in numbered if i in wanted), unique)
        return found if len(unique) == len(indices) else found[places]

    def _decode_at(self, indices: np.ndarray, jump: bool) -> Iterator[tuple[int, Any]]:
        """Index and frame of ascending indices; ``jump``: to the key frame before each, where that is ahead."""
        keys = self.stream.keys
        with _Opened(self.stream) as (container, track):
            frames = self._frames(container, track, None)
            reached = int(keys[0])
            for index in indices.tolist():
                pts = int(self.stream.pts[index])
                key = int(keys[np.searchsorted(keys, pts, side="right") - 1])
                if jump and key > reached:
                    container.seek(key, stream=track)
                    frames = self._frames(container, track, key)
                for frame in frames:
                    if frame.pts is None:
                        continue
                    reached = frame.pts
                    if frame.pts == pts:
                        yield index, frame
                    if frame.pts >= pts:
                        break

    def _frames(self, container: Any, track: Any, key: int | None) -> Iterator[Any]:
        """Frames as they are shown; after a jump to ``key``, from there on or from before.

        Raises:
            _LostError: the jump led elsewhere.
        """
        is_first = key is not None
        for packet in container.demux(track):
            if is_first and (not packet.is_keyframe or packet.pts is None or packet.pts > (key or 0)):
                raise _LostError
            is_first = False
            yield from packet.decode()

    def _decode_all(self, stop: int | None = None) -> Iterator[Any]:
        """All frames, or the first ``stop``; damage, as at the end of a truncated file, is their end."""
        with _Opened(self.stream) as (container, track):
            number = 0
            try:
                for frame in self._frames(container, track, None):
                    yield frame
                    number += 1
                    if number == stop:
                        return
            except av.error.FFmpegError:
                if number == 0:
                    raise

    def _count(self) -> np.ndarray:
        """The spans of all frames, found by decoding them: twice the work, where there is no other way."""
        try:
            times = [(frame.pts, frame.duration or 0) for frame in self._decode_all()]
        except _ERRORS as error:
            raise self._undecodable(first_line(error)) from error
        if not times:
            raise self._undecodable("no frame comes out")
        pts = [time for time, _ in times if time is not None]
        if len(pts) == len(times) and all(a < b for a, b in zip(pts, pts[1:])):
            return spans_of(np.array(pts, dtype=np.int64), pts[-1] + times[-1][1], self.stream.time_base)
        if not self.stream.average_fps:
            raise self._undecodable("its frames have no time stamps, and it states no frame rate")
        edges = np.arange(len(times) + 1) / self.stream.average_fps
        return np.stack([edges[:-1], edges[1:]], axis=1)

    def _collect(self, frames: Iterator[tuple[int, Any]], unique: np.ndarray) -> np.ndarray:
        """The pixels of all ``unique`` indices, from pairs of an index and its frame."""
        rows = {index: row for row, index in enumerate(unique.tolist())}
        convert = _Converter()
        pixels: np.ndarray | None = None
        missing = set(rows)
        try:
            for index, frame in frames:
                if frame.is_corrupt:
                    raise self._undecodable(f"frame {index} is damaged")
                rgb = convert(frame)
                if pixels is None:
                    pixels = np.empty((len(rows), *rgb.shape), dtype=np.uint8)
                if rgb.shape != pixels.shape[1:]:
                    raise self._undecodable(f"frames change their size from {pixels.shape[1:3]} to {rgb.shape[:2]}")
                pixels[rows[index]] = rgb
                missing.discard(index)
        except _ERRORS as error:
            raise self._undecodable(first_line(error)) from error
        if missing or pixels is None:
            raise self._undecodable(f"{len(missing)} of {len(rows)} frames do not come out")
        return pixels

    def _undecodable(self, reason: str) -> VideoDecodeError:
        return VideoDecodeError(
            f"{self.stream.path}: its {self.stream.codec} video track cannot be decoded ({reason}). The file is "
            f"truncated or damaged. {FETCH_AGAIN} {REENCODE}"
        )


_ERRORS = (av.error.FFmpegError, ValueError, IndexError, OSError)


class _LostError(Exception):
    """A jump in a file led to another place than its packets say."""


class _Opened:
    """A container and its video track, closed at the end; one thread decodes, as many videos are read at a time."""

    def __init__(self, stream: Stream):
        self._stream = stream

    def __enter__(self) -> tuple[Any, Any]:
        self._container = av.open(str(self._stream.path))
        track = self._container.streams[self._stream.index]
        track.codec_context.thread_count = 1
        return self._container, track

    def __exit__(self, *_: object) -> None:
        self._container.close()


class _Converter:
    """Frames to (height, width, 3) RGB."""

    def __init__(self) -> None:
        self._made_for: tuple[Any, ...] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        kind = (frame.width, frame.height, frame.format.name, frame.rotation)
        if kind != self._made_for:
            self._graph, self._made_for = _graph(frame), kind
        self._graph.push(frame)
        rgb: np.ndarray = self._graph.pull().to_ndarray()
        return rgb


def _graph(frame: Any) -> Any:
    graph = av.filter.Graph()
    base = frame.time_base or Fraction(1, 1000)
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=base)]
    nodes += [graph.add(*turn) for turn in _TURNS.get(frame.rotation, [])]
    # bilinear: how decord and torchcodec spread chroma. It matters for 10 bits; 8 bits have a way of their own.
    nodes += [graph.add("scale", "flags=bilinear"), graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph
