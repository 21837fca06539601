"""What is in a zip, a tar or the parts of a tar, and taking single files out of it.

Nothing is unpacked as a whole: the caller says where each file goes, so no name in an archive can lead anywhere else.
Parts of a tar are read one after the other, without the copy that joining them would be.
"""

from __future__ import annotations

import errno
import io
import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO

from bimba.types import BimbaError

_TAR = re.compile(r".+\.(?:tar|tgz|tar\.(?:gz|bz2|xz))")
_PART = re.compile(r"(.+\.tar)\.(?:part.*|[a-z]{2}|\d+)")
# RuntimeError: an encrypted zip. NotImplementedError: one compressed in a way that Python does not know.
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
)
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Archive:
    """One archive, in one file or in parts."""

    parts: tuple[Path, ...]

    @property
    def path(self) -> Path:
        return self.parts[0]

    def files(self) -> dict[str, int]:
        """Name -> bytes of each regular file in it.

        Raises:
            BimbaError: it cannot be read.
        """
        with self._explained():
            if self._is_zip:
                with zipfile.ZipFile(self.path) as archive:
                    return {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
            with self._open_tar() as tar:
                return {member.name: member.size for member in tar if member.isreg()}

    def take(self, targets: Mapping[str, Path]) -> Iterator[Path]:
        """Writes files of it to where they belong; each is there whole or not at all. Yields each when it is there.

        Args:
            targets: name in the archive -> file to write.

        Raises:
            BimbaError: the archive is damaged, or the disk is full; what was written before stays.
        """
        with self._explained():
            if self._is_zip:
                with zipfile.ZipFile(self.path) as archive:
                    for name, target in targets.items():
                        with archive.open(name) as content:
                            _write(content, target)
                        yield target
                return
            with self._open_tar() as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.isreg() and member.name in targets else None
                    if file is not None:
                        _write(file, targets[member.name])
                        yield targets[member.name]

    @property
    def _is_zip(self) -> bool:
        return self.path.suffix == ".zip"

    @contextmanager
    def _open_tar(self) -> Iterator[tarfile.TarFile]:
        with io.BufferedReader(_Joined(self.parts), 1 << 20) as joined, tarfile.open(fileobj=joined, mode="r:*") as tar:
            yield tar

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except _BROKEN as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                raise BimbaError(
                    f"{self.path}: {error.strerror}. What was written stays: free space and go on."
                ) from error
            if is_pointer(self.path):
                raise BimbaError(
                    f"{self.path} is a Git LFS pointer; fetch the file itself (`git lfs pull`)."
                ) from error
            parts = f" and {len(self.parts) - 1} more parts" if len(self.parts) > 1 else ""
            raise BimbaError(f"{self.path}{parts}: {type(error).__name__}: {error}. Is it all there?") from error


def archives_in(files: Sequence[Path]) -> list[Archive]:
    """The archives among files; parts that an archive was joined from are left out where the whole is there."""
    found: dict[Path, list[Path]] = {}
    parts: dict[Path, list[Path]] = {}
    for path in sorted(files):
        if path.suffix == ".zip" or _TAR.fullmatch(path.name):
            found[path] = [path]
        elif match := _PART.fullmatch(path.name):
            parts.setdefault(path.with_name(match[1]), []).append(path)
    for whole, its in parts.items():
        size = sum(path.stat().st_size for path in its)
        if whole not in found or whole.stat().st_size < size:  # the harness joins them, and may have been stopped
            found[whole] = its
    return [Archive(tuple(its)) for its in found.values()]


def is_pointer(path: Path) -> bool:
    """A Git LFS pointer: a few lines of text in the place of a file that was not fetched."""
    if path.stat().st_size > 1024:
        return False
    with path.open("rb") as file:
        return file.read(64).startswith(b"version https://git-lfs")


def put(temporary: Path, target: Path) -> None:
    """The last step of writing a file: it takes its place at once, whatever was there."""
    os.replace(temporary, target)


def temporary_beside(target: Path) -> Path:
    """Where a file is written first; what a run that was killed left there is overwritten."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name}.partial")


def _write(content: IO[bytes], target: Path) -> None:
    temporary = temporary_beside(target)
    try:
        with temporary.open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        put(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


class _Joined(io.RawIOBase):
    """Files read as one, one after the other."""

    def __init__(self, paths: Sequence[Path]):
        self.files = [path.open("rb") for path in paths]
        sizes = [path.stat().st_size for path in paths]
        self.begins = [0, *accumulate(sizes)]  # one more than files: the last is where everything ends
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.begins[-1]}[whence]
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while self.position < self.begins[-1]:
            number = bisect_right(self.begins, self.position) - 1
            self.files[number].seek(self.position - self.begins[number])
            count = self.files[number].readinto(buffer)
            if count == 0:
                raise OSError("a part became shorter while it was read")
            self.position += count
            return count
        return 0

    def close(self) -> None:
        for file in self.files:
            file.close()
        super().close()
