"""Words that every floor shares: the axis legend, the frames of a video, a batch, and what can go wrong.

Axis legend (used in every shape comment of this package)::

    B batch · T frames · H, W patch rows, columns · C hidden size · L sequence · D inner channels · N state · Q queries

Nothing here imports torch: ``import bimba`` stays cheap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeGuard

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


ShortVideos = Literal["error", "repeat"]  # of a video with fewer frames than asked for: refuse it, or repeat frames


class BimbaError(Exception):
    """An error whose message is meant for the user: what was received, what was expected, what to do."""


def user_error(error: BaseException) -> BimbaError | None:
    """The ``BimbaError`` that another error was raised from; None if there was none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, BimbaError):
        cause = cause.__cause__
    return cause


def first_line(error: BaseException) -> str:
    """What an error says, in one line; of one that says nothing, its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def memory_error(error: BaseException, remedy: str) -> BimbaError | None:
    """What to say where memory has run out, on a GPU or on the machine; None for any other error.

    Args:
        remedy: a sentence: what takes less.
    """
    cause: BaseException | None = error
    while cause is not None:
        said = first_line(cause)
        # By name, as nothing here imports torch, whose allocator on the CPU raises no error of a type of its own.
        if type(cause).__name__ in ("MemoryError", "OutOfMemoryError") or "DefaultCPUAllocator: " in said:
            return BimbaError(f"Memory ran out ({said.rstrip('.'):.200}). {remedy}")
        cause = cause.__cause__
    return None


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a setting is a whole number of at least 1; a switch is none, though Python counts True as 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a setting is a finite number, and no switch."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class VideoDecodeError(BimbaError):
    """A video file that cannot be read. The message names the file."""


class ShortVideoError(VideoDecodeError):
    """A video with fewer frames than asked for. The message names the file and gives both numbers."""


class ImageReadError(BimbaError):
    """An image file that cannot be read. The message names the file."""


class SequenceTooLongError(BimbaError):
    """A sample longer than the model's limit. The message gives both lengths."""


@dataclass(frozen=True)
class Frames:
    """Decoded frames of one video.

    Attributes:
        pixels: (T, height, width, 3) uint8, RGB.
        times_s: (T,) float64, presentation time of each frame in seconds.
        indices: (T,) int64, position of each frame in the video; may repeat when the video is short.
        duration_s: length of the whole video in seconds.
        num_total: how many frames the whole video has.
        average_fps: frames per second of the whole video, as the file states it.
        path: the file the frames come from.
        reader: the video backend that decoded them.
    """

    pixels: np.ndarray
    times_s: np.ndarray
    indices: np.ndarray
    duration_s: float
    num_total: int
    average_fps: float
    path: str
    reader: str = ""


@dataclass(frozen=True)
class BadSample:
    """A training sample that could not be read: reported, counted, never replaced by another."""

    path: str
    error: str


class Batch(TypedDict, total=False):
    """What collate hands to the model.

    ``pixel_values_videos`` holds one (T, 3, height, width) float tensor per video, in the order in which the
    videos' placeholder tokens appear in ``input_ids``; videos may differ in T. ``pixel_values_images`` holds one
    (tiles, 3, height, width) tensor per image likewise, ``image_sizes`` their (width, height). Either may be empty. A
    batch whose samples were all bad has ``bad_samples`` only.

    ``ids``, ``sources`` and ``modalities`` say of each of the B samples which row it is, where that comes from, and
    what it is about: video, image, multi_image or text.
    """

    input_ids: Tensor  # (B, L) int64, right-padded
    attention_mask: Tensor  # (B, L) int64, 1 = token, 0 = padding
    labels: Tensor  # (B, L) int64, -100 = not trained on
    pixel_values_videos: list[Tensor]
    pixel_values_images: list[Tensor]
    image_sizes: list[tuple[int, int]]
    ids: list[str]
    sources: list[str]
    modalities: list[str]
    bad_samples: list[BadSample]
