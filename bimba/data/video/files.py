"""What is seen of a file without opening it as a video, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bimba.types import BimbaError, VideoDecodeError

REENCODE = "If a player can show it, re-encode it: ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4"
FETCH_AGAIN = "Download or copy the file again."
_HEAD_BYTES = 256


@contextmanager
def looking_at(path: Path, raised: type[BimbaError]) -> Iterator[None]:
    """Turns what the system says of a path that it cannot look at into an error that names it.

    ``Path.is_file`` is False for a file that is not there, and an OSError for one that is out of reach.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise raised(f"{path}: cannot be read ({why}). Check its name, its permissions and its disk.") from error


def check_is_media(path: Path) -> None:
    """Raises a VideoDecodeError for what is seen without opening a container."""
    with looking_at(path, VideoDecodeError):
        if not path.exists():
            named, what_helps = str(path), "Check the path"
            if ":/" in named:  # an address, of which a path has lost one of the two slashes
                named, what_helps = named.replace(":/", "://", 1), "Download it first"
            raise VideoDecodeError(
                f"{named}: there is no such file. {what_helps}; videos are read from local files only."
            )
        if path.is_dir():
            raise VideoDecodeError(f"{path}: a folder. Expected a video file; give the path of a file in it.")
        if not path.is_file():
            raise VideoDecodeError(f"{path}: a device or a pipe. Expected a regular video file.")
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
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
