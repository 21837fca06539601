"""[1] A video file to frames: uniform sampling, decoded by decord.

Whatever is wrong with a file ends in one ``VideoDecodeError`` that names it, says what was found there, and what
to do. PyAV looks at the file first: it says what a file holds (an audio track only, a picture, no media at all),
where decord prints to stderr and reports a failed C++ check.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import get_args

import numpy as np

from bimba.data.sampling import frames_in_window, uniform_indices
from bimba.types import BimbaError, Frames, ShortVideoError, ShortVideos, VideoDecodeError

REENCODE = "If a player can show it, re-encode it: ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4"
FETCH_AGAIN = "Download or copy the file again."
_HEAD_BYTES = 256


def check_short_videos(short_videos: str) -> None:
    """Raises a BimbaError unless this says what becomes of short videos."""
    if short_videos not in get_args(ShortVideos):
        raise BimbaError(f"short_videos is {short_videos!r}; expected one of {', '.join(get_args(ShortVideos))}.")


def read_frames(
    path: str | os.PathLike[str],
    num_frames: int,
    start_s: float | None = None,
    end_s: float | None = None,
    short_videos: ShortVideos = "error",
) -> Frames:
    """Decodes ``num_frames`` frames spread evenly over the video, or over the window ``start_s`` to ``end_s``.

    Args:
        short_videos: what becomes of a video (or window) with fewer frames than that: "error", or "repeat" some of
            them, as the original does.

    Returns:
        Exactly ``num_frames`` frames.

    Raises:
        ShortVideoError: fewer frames than ``num_frames``, and ``short_videos`` is "error".
        VideoDecodeError: the path is not a video that can be decoded.
        BimbaError: the window does not lie in the video, or ``num_frames`` is less than one.
    """
    check_short_videos(short_videos)
    path = Path(path)
    codec = _check_holds_video(path)

    import decord  # here, not above: each DataLoader worker loads it for itself

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        spans_s = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)  # (n, 2)
        if start_s is None and end_s is None:
            first, stop = 0, len(spans_s)  # every frame counts, whatever its time stamps say
        else:
            first, stop = frames_in_window(spans_s, start_s, end_s)
        indices = first + uniform_indices(stop - first, num_frames)
        if stop - first < num_frames and short_videos == "error":
            raise ShortVideoError(_too_short(path, stop - first, num_frames))
        pixels = _to_numpy(reader.get_batch(indices))
    except ShortVideoError:
        raise
    except BimbaError as error:
        raise BimbaError(f"{path}: {error}") from error
    except (RuntimeError, ValueError, IndexError, OSError, AssertionError, decord.DECORDError) as error:
        # AssertionError: decord asserts that the frame count is positive.
        raise VideoDecodeError(
            f"{path}: its {codec} video track cannot be decoded ({_first_line(error)}). The file is truncated or "
            f"damaged, or decord does not know the codec. {FETCH_AGAIN} {REENCODE}"
        ) from error
    return Frames(
        pixels=pixels,
        times_s=spans_s[indices, 0],
        indices=indices,
        duration_s=float(spans_s[-1, 1]),
        num_total=len(spans_s),
        average_fps=float(reader.get_avg_fps()),
        path=str(path),
    )


def check_video(path: str | os.PathLike[str]) -> None:
    """Opens a file without decoding a frame of it.

    Raises:
        VideoDecodeError: there is no file, or no video in it.
    """
    _check_holds_video(Path(path))


def _too_short(path: Path, available: int, num_frames: int) -> str:
    frames = "1 frame" if available == 1 else f"{available} frames"
    return (
        f"{path}: {frames}, and {num_frames} were asked for. Ask for at most {available} (`bimba ask --frames "
        f"{available}`), or let frames repeat (`bimba ask --short-videos repeat`; `data.short_videos=repeat` in "
        "training; `short_videos=repeat` elsewhere)."
    )


def _check_holds_video(path: Path) -> str:
    """The codec of the file's video track.

    Raises:
        VideoDecodeError: there is no file, or no video in it.
    """
    _check_is_media(path)

    import av
    from av.stream import Disposition

    try:
        with av.open(str(path)) as container:
            # The picture on an audio file's cover is a video track too, by name.
            tracks = [t for t in container.streams.video if not t.disposition & Disposition.attached_pic]
            if tracks:
                return tracks[0].codec_context.name if tracks[0].codec_context else "unknown"
            received = "audio only" if container.streams.audio else "no video track"
    except (av.error.FFmpegError, ValueError, IndexError, OSError) as error:
        raise VideoDecodeError(
            f"{path}: not a media file, or a truncated one ({path.stat().st_size} bytes, {_first_line(error)}). "
            f"Expected a video. {FETCH_AGAIN}"
        ) from error
    raise VideoDecodeError(f"{path}: a media file with {received}. Give a file that holds a video track.")


def _check_is_media(path: Path) -> None:
    """Raises a VideoDecodeError for what is seen without opening a container."""
    if not path.exists():
        raise VideoDecodeError(f"{path}: there is no such file. Check the path; videos are read from local files only.")
    if path.is_dir():
        raise VideoDecodeError(f"{path}: a folder. Expected a video file; give the path of a file in it.")
    if not path.is_file():
        raise VideoDecodeError(f"{path}: a device or a pipe. Expected a regular video file.")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise VideoDecodeError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from error
    if not head:
        raise VideoDecodeError(f"{path}: an empty file (0 bytes). Expected a video. {FETCH_AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise VideoDecodeError(
            f"{path}: a Git LFS pointer, the video itself was not downloaded. Run `git lfs pull` in its repository."
        )
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise VideoDecodeError(
            f"{path}: an HTML page, usually the error page of a failed download. Expected a video. {FETCH_AGAIN}"
        )


def _to_numpy(batch: object) -> np.ndarray:
    """decord's own array, or the torch tensor that it hands out where another library set ``decord.bridge``."""
    return batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)


def _first_line(error: BaseException) -> str:
    """The message without decord's time stamps, C++ source lines and stack trace."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", line).strip()
