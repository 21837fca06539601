"""[1] Which frames of a video are looked at: functions of frame counts and frame times, nothing is decoded here."""

from __future__ import annotations

import numpy as np

from bimba.types import BimbaError

# Annotations give clip ends in whole seconds: an end that was rounded up past the video's is not an error.
END_TOLERANCE_S = 0.5


def uniform_indices(num_total: int, num_samples: int) -> np.ndarray:
    """Indices of ``num_samples`` frames spread evenly over ``num_total``, the first and the last included.

    They are those of the original's ``np.linspace(0, n - 1, N, dtype=int)`` (its ``force_sample``), to the frame:
    a video with fewer frames than asked for repeats some.

    Returns:
        (num_samples,) int64, ascending.

    Raises:
        BimbaError: no frames, or none asked for.
    """
    if num_total < 1:
        raise BimbaError(f"Cannot sample from {num_total} frames; the video must have at least one.")
    if num_samples < 1:
        raise BimbaError(f"Got num_frames={num_samples}; ask for at least one frame.")
    return np.linspace(0, num_total - 1, num_samples, dtype=int).astype(np.int64)


def original_step(average_fps: float, per_second: float = 1.0) -> int:
    """Every how many frames the original takes one: the frame rate by ``per_second``, rounded half to even.

    Raises:
        BimbaError: that is 0. The original fails then, even where it would have spread its frames evenly.
    """
    if not average_fps / per_second > 0.5:
        raise BimbaError(
            f"The video has {average_fps:g} frames per second; the original recipe, which counts {per_second:g} per "
            f"second, takes no video with {per_second / 2:g} or less. Use data.recipe=default, or convert the video."
        )
    return round(average_fps / per_second)


def original_frames(
    num_total: int, average_fps: float, max_frames: int, per_second: float = 1.0, force: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Which frames the original reads, and when it believes them to be shown; its quirks are kept.

    It takes every k-th frame (:func:`original_step`) and counts their times in steps of k, so with ``per_second`` other
    than 1 they may lie behind the video's end. Where that makes more than ``max_frames`` frames, and wherever ``force``
    is set, it takes ``max_frames`` frames spread evenly instead.

    Args:
        num_total: frames of the video.
        average_fps: frames per second as the file states them.
        max_frames: the most frames; 0: no limit, and ``force`` is ignored.
        per_second: frames to take of each second.
        force: always take ``max_frames`` frames, as for the released models.

    Returns:
        (n,) int64 indices and (n,) float64 times in seconds.

    Raises:
        BimbaError: the video has too few frames per second.
    """
    step = original_step(average_fps, per_second)
    indices = np.arange(0, num_total, step)
    if max_frames and (force or len(indices) > max_frames):
        indices = uniform_indices(num_total, max_frames)
        return indices, indices / average_fps
    return indices, indices / step


def frames_in_window(spans_s: np.ndarray, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """The frames on screen at some moment between ``start_s`` and ``end_s``.

    Args:
        spans_s: (n, 2) seconds, when each frame appears and disappears, in presentation order.
        start_s: begin of the window, None for the video's begin.
        end_s: end of the window, None for the video's end.

    Returns:
        ``(first, stop)``: frames ``first`` to ``stop - 1``; at least one.

    Raises:
        BimbaError: the window is empty or reaches outside the video.
    """
    video_end_s = float(spans_s[-1, 1])
    start = 0.0 if start_s is None else start_s
    end = video_end_s if end_s is None else end_s
    if not (0 <= start < video_end_s and start < end <= video_end_s + END_TOLERANCE_S):
        raise BimbaError(
            f"The window from {start:g} s to {end:g} s does not lie in the video, which lasts {video_end_s:.2f} s. "
            "Give 0 <= start_s < end_s <= the video's duration."
        )
    first = int(np.searchsorted(spans_s[:, 1], start, side="right"))
    stop = int(np.searchsorted(spans_s[:, 0], end, side="left"))
    return first, max(stop, first + 1)
