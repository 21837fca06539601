"""[1] A video file to frames: uniform sampling, by the reader that gives the right ones.

decord reads ordinary files, as for the published numbers. Where its frames would be others than those asked for, which
the file's packets tell (``stream.py``), torchcodec does if it is installed, and else PyAV. On the same frame the three
give the same pixels, to the bit.

Whatever is wrong with a file ends in one ``VideoDecodeError`` that names it, says what was found there, and what
to do.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from bimba.data.sampling import frames_in_window, uniform_indices
from bimba.data.video.stream import Stream, check_video, probe
from bimba.types import BimbaError, Frames, ShortVideoError, ShortVideos, VideoDecodeError

__all__ = ["check_short_videos", "check_video", "checked_backend", "decode", "read_frames", "say"]

logger = logging.getLogger(__name__)

VARIABLE = "BIMBA_VIDEO_BACKEND"
BACKENDS = ("decord", "torchcodec", "pyav")  # in the order in which "auto" asks them
_TIME_TOLERANCE_S = 5e-3  # decord counts in float32: a millisecond after a few hours


class Note(NamedTuple):
    """Something to say once; notes with the same ``key`` are one."""

    level: int
    key: str
    text: str


def check_short_videos(short_videos: str) -> None:
    """Raises a BimbaError unless this says what becomes of short videos."""
    if short_videos not in get_args(ShortVideos):
        raise BimbaError(f"short_videos is {short_videos!r}; expected one of {', '.join(get_args(ShortVideos))}.")


def checked_backend(name: str | None) -> str:
    """``name``; None: what the environment variable BIMBA_VIDEO_BACKEND names, or "auto".

    Raises:
        BimbaError: there is no such backend, or it was named and cannot run here.
    """
    name = name or os.environ.get(VARIABLE) or "auto"
    if name not in ("auto", *BACKENDS):
        raise BimbaError(f"The video backend is {name!r}; expected one of auto, {', '.join(BACKENDS)}.")
    if name != "auto" and (reason := backend_module(name).unavailable()):
        raise BimbaError(f"The video backend {name!r} was asked for and cannot run: {reason}")
    return name


def read_frames(
    path: str | os.PathLike[str],
    num_frames: int,
    start_s: float | None = None,
    end_s: float | None = None,
    short_videos: ShortVideos = "error",
    backend: str | None = None,
) -> Frames:
    """Decodes ``num_frames`` frames spread evenly over the video, or over the window ``start_s`` to ``end_s``.

    Args:
        short_videos: what becomes of a video (or window) with fewer frames than that: "error", or "repeat" some of
            them, as the original does.
        backend: "auto", "decord", "pyav" or "torchcodec"; None: as :func:`checked_backend`.

    Returns:
        Exactly ``num_frames`` frames.

    Raises:
        ShortVideoError: fewer frames than ``num_frames``, and ``short_videos`` is "error".
        VideoDecodeError: the path is not a video that can be decoded.
        BimbaError: the window does not lie in the video, ``num_frames`` is less than one, or the backend cannot run.
    """
    frames, notes = decode(path, num_frames, start_s, end_s, short_videos, checked_backend(backend))
    say(notes)
    return frames


def decode(
    path: str | os.PathLike[str],
    num_frames: int,
    start_s: float | None,
    end_s: float | None,
    short_videos: ShortVideos,
    backend: str,
) -> tuple[Frames, list[Note]]:
    """As :func:`read_frames`, with what there is to say of how it was read: for another process to say it."""
    check_short_videos(short_videos)
    path = Path(path)
    stream = probe(path)
    _check_memory(stream, num_frames)
    notes: list[Note] = []
    error: VideoDecodeError | None = None
    for name in _candidates(backend, stream, notes):
        try:
            reader = backend_module(name).Reader(stream)
            spans_s = reader.spans_s
            if backend == "auto" and name == "decord":
                _check_times(spans_s, stream)
                spans_s = stream.spans_s
            indices = _indices(path, spans_s, num_frames, start_s, end_s, short_videos)
            pixels = reader.read(indices)
        except ShortVideoError:
            raise
        except VideoDecodeError as refusal:
            notes.append(_passed_over(name, str(refusal), path))
            error = refusal
            continue
        if backend == "auto":
            notes.append(Note(logging.INFO, f"auto {name}", f"videos: {name} reads {path} and others like it"))
        frames = Frames(
            pixels=pixels,
            times_s=spans_s[indices, 0],
            indices=indices,
            duration_s=float(spans_s[-1, 1]),
            num_total=len(spans_s),
            average_fps=reader.average_fps,
            path=str(path),
            reader=name,
        )
        return frames, notes
    raise error or BimbaError("No video backend can run here; pip install av decord.")


def say(notes: list[Note]) -> None:
    """Logs what this process has not said yet."""
    for note in notes:
        if note.key not in _said:
            _said.add(note.key)
            logger.log(note.level, note.text)


_said: set[str] = set()


def _candidates(backend: str, stream: Stream, notes: list[Note]) -> list[str]:
    """The backends to try, one after the other."""
    if stream.ends_early:
        text = f"{stream.path}: {stream.ends_early}; what is there is read. It may be a truncated download."
        notes.append(Note(logging.WARNING, "ends early", text))
    if backend != "auto":
        if reason := backend_module(backend).refuses(stream):
            if not backend_module(backend).READS_WHAT_IT_REFUSES:
                raise VideoDecodeError(
                    f"{stream.path}: {backend} was asked for, and would not give the right pixels: {reason}. Use "
                    "video_backend=auto, which takes another reader for such a file."
                )
            text = f"videos: {backend} was asked for, and may not give the right pixels of {stream.path}: {reason}"
            notes.append(Note(logging.WARNING, f"{backend} {reason}", text))
        return [backend]
    found = []
    for name in BACKENDS:
        reason = backend_module(name).unavailable() or backend_module(name).refuses(stream)
        if reason is None:
            found.append(name)
        elif not found:
            notes.append(_passed_over(name, reason, stream.path))
    return found


def _passed_over(name: str, reason: str, path: Path) -> Note:
    text = f"videos: {name} passed over for {path} and others like it: {reason}"
    return Note(logging.INFO, f"not {name} {reason.removeprefix(str(path))}", text)


def backend_module(name: str) -> Any:
    """``unavailable()``: why it cannot run here; ``refuses(stream)``: why it would be wrong; ``Reader(stream)``.

    ``READS_WHAT_IT_REFUSES``: where it is asked for by name.
    """
    return import_module(f"bimba.data.video.{name}")


def _check_times(spans_s: np.ndarray, stream: Stream) -> None:
    """Raises a VideoDecodeError unless decord's frames are those of the packets."""
    expected = stream.spans_s
    if len(spans_s) != len(expected):
        raise VideoDecodeError(f"{stream.path}: decord counts {len(spans_s)} frames, and {len(expected)} are shown.")
    if not np.allclose(spans_s[:, 0], expected[:, 0], rtol=0, atol=_TIME_TOLERANCE_S):
        raise VideoDecodeError(f"{stream.path}: decord's time stamps are not those of the file's packets.")


def _check_memory(stream: Stream, num_frames: int) -> None:
    """Raises a VideoDecodeError for frames that would take more than half of this machine's memory."""
    needed = 3 * num_frames * stream.width * stream.height
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory // 2:
        raise VideoDecodeError(
            f"{stream.path}: {num_frames} frames of {stream.width} x {stream.height} take {needed / 1e9:.1f} GB; this "
            f"machine has {memory / 1e9:.1f} GB. Ask for fewer frames, or make the video smaller: ffmpeg -i IN -vf "
            "scale=1280:-2 OUT.mp4"
        )


def _indices(
    path: Path,
    spans_s: np.ndarray,
    num_frames: int,
    start_s: float | None,
    end_s: float | None,
    short_videos: ShortVideos,
) -> np.ndarray:
    """Which frames are read."""
    try:
        if start_s is None and end_s is None:
            first, stop = 0, len(spans_s)  # every frame counts, whatever its time stamps say
        else:
            first, stop = frames_in_window(spans_s, start_s, end_s)
        indices = first + uniform_indices(stop - first, num_frames)
    except BimbaError as error:
        raise BimbaError(f"{path}: {error}") from error
    if stop - first < num_frames and short_videos == "error":
        raise ShortVideoError(_too_short(path, stop - first, num_frames))
    return indices


def _too_short(path: Path, available: int, num_frames: int) -> str:
    frames = "1 frame" if available == 1 else f"{available} frames"
    return (
        f"{path}: {frames}, and {num_frames} were asked for. Ask for at most {available} (`bimba ask --frames "
        f"{available}`), or let frames repeat (`bimba ask --short-videos repeat`; `data.short_videos=repeat` in "
        "training; `short_videos=repeat` elsewhere)."
    )
