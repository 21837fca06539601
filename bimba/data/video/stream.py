"""What a file's packets say of its video track, without decoding one: which frames are shown when, and what is odd.

decord counts packets and seeks to key frames. That gives the right frames where each packet is a frame that is shown,
and nothing after a key frame needs what was before it; elsewhere it gives other frames than it was asked for, and says
nothing. :func:`probe` finds out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bimba.data.video.files import FETCH_AGAIN, REENCODE, check_is_media
from bimba.data.video.h264 import is_clean_key
from bimba.types import VideoDecodeError, first_line

# Containers that say of every packet when it is shown, and that are found again after a jump.
_INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_END_TOLERANCE_S = 2.0  # sound may end later than the pictures
_VP8_SHOWN = 0x10  # a bit of a frame's first byte; other codecs put frames that are not shown into others' packets


@dataclass(frozen=True)
class Stream:
    """The video track of a file.

    Attributes:
        path, container, codec: the file and what FFmpeg calls its format and its codec.
        index: which of the file's tracks it is.
        width, height: as coded, before rotation.
        bits: of a colour.
        pts: (n,) int64, ascending: when each frame is shown, in units of ``time_base``.
        end: when the last of them disappears.
        keys: (k,) int64, ascending: the ones among them from which decoding can begin.
        average_fps: frames per second as the file states them; 0.0: it does not.
        is_indexed: ``pts`` and ``keys`` can be relied on; elsewhere only decoding tells which frames there are.
        has_false_keys: some key frames are whole only after frames that follow them, and are not among ``keys``.
        oddities: why decord would give other frames than those shown, none for an ordinary file.
        ends_early: how much of a truncated file is there, in words.
    """

    path: Path
    container: str
    codec: str
    index: int
    width: int
    height: int
    bits: int
    pts: np.ndarray
    end: int
    keys: np.ndarray
    time_base: Fraction
    average_fps: float
    is_indexed: bool
    has_false_keys: bool
    oddities: tuple[str, ...]
    ends_early: str | None

    @property
    def spans_s(self) -> np.ndarray:
        """(n, 2) float64 seconds from the first frame on, when each frame appears and disappears."""
        return spans_of(self.pts, self.end, self.time_base)


class _Packet(NamedTuple):
    """What is kept of a packet; ``is_clean``: decoding can begin with it."""

    pts: int | None
    duration: int
    is_key: bool
    is_clean: bool
    is_hidden: bool


def spans_of(pts: np.ndarray, end: int, time_base: Fraction) -> np.ndarray:
    """(n, 2) seconds after the first frame of (n,) times of showing and of the end, in units of ``time_base``."""
    edges = (np.append(pts, end) - pts[0]) * time_base.numerator / time_base.denominator
    return np.stack([edges[:-1], edges[1:]], axis=1)


def check_video(path: str | os.PathLike[str]) -> None:
    """Opens a file, and reads no frame of it.

    Raises:
        VideoDecodeError: there is no file, or no video in it.
    """
    with _opened(Path(path)):
        pass


def probe(path: Path) -> Stream:
    """Reads all packets of a file's video track.

    Raises:
        VideoDecodeError: there is no file, no video in it, or less than its index promises.
    """
    with _opened(path) as (container, track, num_tracks):
        context = track.codec_context
        packets = [_packet(packet, context) for packet in container.demux(track) if packet.size]
        stream = _stream(path, container, track, packets, num_tracks)
    return stream


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any, int]]:
    """The container, its video track, and how many of these it has.

    Raises:
        VideoDecodeError: there is no file or no video in it; or FFmpeg finds fault with what is read of it.
    """
    check_is_media(path)

    import av  # here, not above: each DataLoader worker loads it for itself
    from av.stream import Disposition

    try:
        with av.open(str(path)) as container:
            # The picture on an audio file's cover is a video track too, by name.
            tracks = [t for t in container.streams.video if not t.disposition & Disposition.attached_pic]
            best = container.streams.best("video")
            track = best if best in tracks else tracks[0] if tracks else None
            if track is None:
                received = "audio only" if container.streams.audio else "no video track"
                raise VideoDecodeError(f"{path}: a media file with {received}. Give a file that holds a video track.")
            if track.codec_context is None:
                raise VideoDecodeError(f"{path}: a media file with a video track of an unknown codec. {REENCODE}")
            if container.format.name.endswith("_pipe") or container.format.name == "image2":
                kind = track.codec_context.name
                raise VideoDecodeError(f"{path}: a picture ({kind}), not a video. Give a video file.")
            yield container, track, len(tracks)
    except (av.error.FFmpegError, ValueError, IndexError, OSError) as error:
        raise VideoDecodeError(
            f"{path}: not a media file, or a truncated one ({path.stat().st_size} bytes, {_reason(error)}). "
            f"Expected a video. {FETCH_AGAIN}"
        ) from error


def _stream(path: Path, container: Any, track: Any, packets: Sequence[_Packet], num_tracks: int) -> Stream:
    codec = track.codec_context.codec.canonical_name
    if not packets:
        raise VideoDecodeError(f"{path}: its {codec} video track cannot be decoded (it holds no frames). {FETCH_AGAIN}")
    found = len(packets)
    if track.frames > found and container.format.name == _INDEXED[0]:
        found = _count_packets(path, track.index)  # an edit list may leave out whole stretches
    if track.frames > found and container.format.name == _INDEXED[0]:
        raise VideoDecodeError(
            f"{path}: its {codec} video track cannot be decoded (its index lists {track.frames} frames, and the file "
            f"ends after {found}). The file is truncated. {FETCH_AGAIN} {REENCODE}"
        )
    shown = [p for p in packets if not p.is_hidden]
    times = sorted(p.pts for p in shown if p.pts is not None)
    are_timed = bool(shown) and len(set(times)) == len(shown) and all(p.pts is not None for p in packets)
    open_keys = _open_keys(packets)
    has_false_keys = any(p.is_key and not p.is_clean for p in packets[1:])
    starts_clean = packets[0].is_clean and 0 not in open_keys
    ends_early = _ends_early(container, times, track.time_base) if are_timed else None

    oddities = []
    if container.format.name not in _INDEXED:
        oddities.append(f"a {container.format.name} file holds no index of its frames")
    if len(shown) < len(packets):
        oddities.append("it holds frames that are not shown (by an edit list, say)")
    if not are_timed:
        oddities.append("time stamps are missing or repeated")
    if not starts_clean:
        oddities.append("it does not begin with a key frame")
    if open_keys - {0}:
        oddities.append("frames after a key frame need frames before it (open GOP)")
    if has_false_keys:
        oddities.append("it has key frames with which decoding cannot begin (intra refresh)")
    if ends_early:
        oddities.append("its pictures end before the duration that it states")
    if num_tracks > 1:
        oddities.append("there are several video tracks")
    last = max((p for p in shown if p.pts is not None), key=lambda p: p.pts or 0, default=packets[0])
    return Stream(
        path=path,
        container=container.format.name,
        codec=codec,
        index=track.index,
        width=track.codec_context.width,
        height=track.codec_context.height,
        bits=max((c.bits for c in track.codec_context.format.components), default=8)
        if track.codec_context.format
        else 8,
        pts=np.array(times, dtype=np.int64),
        end=(last.pts or 0) + last.duration,
        keys=np.array(sorted(p.pts for p in packets if p.is_clean and p.pts is not None), dtype=np.int64),
        time_base=track.time_base,
        average_fps=float(track.average_rate or 0.0),
        is_indexed=container.format.name in _INDEXED and are_timed and starts_clean and ends_early is None,
        has_false_keys=has_false_keys,
        oddities=tuple(oddities),
        ends_early=ends_early,
    )


def _count_packets(path: Path, index: int) -> int:
    """How many packets of an mp4's track there are, whatever its edit list says."""
    import av

    with av.open(str(path), options={"ignore_editlist": "1"}) as container:
        count = sum(packet.size > 0 for packet in container.demux(container.streams[index]))
    return count


def _open_keys(packets: Sequence[_Packet]) -> set[int]:
    """The positions of key frames that are followed, in the order of decoding, by a frame shown before them."""
    found, key = set(), 0
    for i, packet in enumerate(packets):
        if packet.is_key:
            key = i
        first = packets[key].pts
        if packet.pts is not None and first is not None and packet.pts < first:
            found.add(key)
    return found


def _ends_early(container: Any, times: Sequence[int], time_base: Fraction) -> str | None:
    """Matroska states a duration; where the frames end long before it, the file is not whole."""
    if container.format.name != _INDEXED[1]:
        return None  # of the others only mp4 states anything, and there the index says it
    if container.duration is None:
        return "its duration is not stated"
    stated_s, found_s = container.duration / 1e6, float((times[-1] - times[0]) * time_base)
    return f"it ends at {found_s:.1f} s of {stated_s:.1f} s" if found_s < stated_s - _END_TOLERANCE_S else None


def _packet(packet: Any, context: Any) -> _Packet:
    is_clean = packet.is_keyframe and (context.name != "h264" or is_clean_key(bytes(packet), context.extradata))
    is_hidden = packet.is_discard or (context.name == "vp8" and not memoryview(packet)[0] & _VP8_SHOWN)
    return _Packet(packet.pts, packet.duration or 0, packet.is_keyframe, is_clean, is_hidden)


def _reason(error: BaseException) -> str:
    """What FFmpeg says, without the path and its own number for it."""
    return str(getattr(error, "strerror", None) or first_line(error))
