"""What is seen of a file without opening it as a video, and what to do about it."""

from __future__ import annotations

from pathlib import Path

from bimba.types import VideoDecodeError

REENCODE = "If a player can show it, re-encode it: ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4"
FETCH_AGAIN = "Download or copy the file again."
_HEAD_BYTES = 256


def check_is_media(path: Path) -> None:
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
