"""[1] The files that a row names: a video, a folder of frames, or an image."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from bimba.data.isolated import read_frames
from bimba.data.sampling import uniform_indices
from bimba.data.video import check_short_videos
from bimba.data.video.files import looking_at
from bimba.types import Frames, ImageReadError, ShortVideoError, ShortVideos, VideoDecodeError

FRAME_FOLDER_FPS = 2.0  # of folders of frames, as in LLaVA's training
_FRAME_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_reading = threading.Lock()


def read_video(
    path: Path, num_frames: int, short_videos: ShortVideos = "error", folder_fps: float = FRAME_FOLDER_FPS
) -> Frames:
    """``num_frames`` frames spread evenly over a video file, or over a folder of images that are its frames.

    Args:
        short_videos: see ``video.read_frames``.
        folder_fps: frames per second of a folder of frames.

    Raises:
        VideoDecodeError: neither can be read.
    """
    with looking_at(path, VideoDecodeError):
        is_folder = path.is_dir()
    if is_folder:
        return _read_folder(path, num_frames, short_videos, folder_fps)
    return read_frames(path, num_frames, short_videos=short_videos)


def _read_folder(folder: Path, num_frames: int, short_videos: ShortVideos, fps: float) -> Frames:
    check_short_videos(short_videos)
    with looking_at(folder, VideoDecodeError):
        files = sorted((f for f in folder.iterdir() if f.suffix.lower() in _FRAME_SUFFIXES), key=_as_counted)
    if not files:
        suffixes = ", ".join(sorted(_FRAME_SUFFIXES))
        raise VideoDecodeError(f"{folder}: a folder without frames. Expected images ({suffixes}), or a video file.")
    if len(files) < num_frames and short_videos == "error":
        raise ShortVideoError(
            f"{folder}: {len(files)} frames, and {num_frames} were asked for. Ask for at most {len(files)}, or let "
            "frames repeat (short_videos=repeat)."
        )
    indices = uniform_indices(len(files), num_frames)
    try:
        pictures = [np.asarray(read_image(files[i])) for i in indices]
    except ImageReadError as error:
        raise VideoDecodeError(f"{folder}: one of its frames cannot be read: {error}") from error
    if len(shapes := {picture.shape for picture in pictures}) > 1:
        sizes = " and ".join(f"{width} x {height}" for height, width, _ in sorted(shapes)[:2])
        raise VideoDecodeError(f"{folder}: frames of different sizes ({sizes}). Expected those of one video.")
    return Frames(
        pixels=np.stack(pictures),
        times_s=indices / fps,
        indices=indices,
        duration_s=len(files) / fps,
        num_total=len(files),
        average_fps=fps,
        path=str(folder),
    )


def _as_counted(path: Path) -> list[tuple[int, str]]:
    """So that 2.jpg comes before 10.jpg."""
    pieces = re.split(r"(\d+)", path.name)
    return [(int(piece), "") if piece.isdecimal() else (0, piece) for piece in pieces]


def read_image(path: Path) -> Image.Image:
    """An image file as an RGB picture.

    Raises:
        ImageReadError: there is none, or it is damaged.
    """
    with _opened(path) as image:
        return image.convert("RGB")


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file, as its header says.

    Raises:
        ImageReadError: as of :func:`read_image`.
    """
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with looking_at(path, ImageReadError):
        if not path.is_file():
            what = "a folder" if path.is_dir() else "there is no such file"
            raise ImageReadError(f"{path}: {what}. Expected an image; images are read from local files only.")
    try:
        with _strict(), Image.open(path) as image:
            yield image
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        # SyntaxError: Pillow's word for a broken PNG.
        raise ImageReadError(f"{path}: not an image that can be read ({error}). Copy the file again.") from error


@contextmanager
def _strict() -> Iterator[None]:
    """Pillow as it is by itself: half an image is an error. lmms-eval has it fill the rest with grey, for all."""
    with _reading, warnings.catch_warnings():  # a very large picture is read; Pillow itself refuses one twice as large
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient
