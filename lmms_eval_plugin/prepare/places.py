"""Where a missing file may already be: below folders on this machine, and inside the archives there.

A file is recognised by its name; of several with the same name, the one whose folders are those of the place it is
wanted in. Files are linked, what is in an archive is taken out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from bimba.types import BimbaError
from lmms_eval_plugin.prepare.archives import Archive, archives_in, is_pointer, put, temporary_beside


@dataclass(frozen=True)
class Find:
    """A file, or one in an archive.

    Attributes:
        name: path below the folder that was searched, or in the archive.
        size: bytes.
    """

    name: str
    size: int
    file: Path | None = None
    archive: Archive | None = None


@dataclass
class Places:
    """Everything below some folders, by file name.

    Attributes:
        finds: file name -> the files of that name.
        broken: what is said of archives that cannot be read, and of names that several different files have.
    """

    finds: dict[str, list[Find]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._seen: set[Path] = set()

    def search(self, folder: Path) -> None:
        """Adds what is below ``folder``: files that are not empty and no Git LFS pointers, and those in archives."""
        files = []
        for path in _files(folder):
            if path in self._seen:
                continue
            self._seen.add(path)
            files.append(path)
            size = path.stat().st_size
            if size and not is_pointer(path):
                self._add(Find(path.relative_to(folder).as_posix(), size, file=path))
        for archive in archives_in(files):
            try:
                content = archive.files()
            except BimbaError as error:
                self.broken.append(str(error))
                continue
            for name, size in content.items():
                if size:
                    self._add(Find(name, size, archive=archive))

    def _add(self, find: Find) -> None:
        self.finds.setdefault(PurePosixPath(find.name).name, []).append(find)

    def find(self, wanted: str, suffixes: Sequence[str] = ()) -> tuple[str, Find] | None:
        """The best file for a path that is wanted, and that path, with the ending of the file.

        Args:
            wanted: path below the benchmark's folder.
            suffixes: endings that serve as well.
        """
        path = PurePosixPath(wanted)
        for name in dict.fromkeys([wanted, *(str(path.with_suffix(suffix)) for suffix in suffixes)]):
            candidates = self.finds.get(PurePosixPath(name).name, [])
            closest = max((_alike(find.name, name) for find in candidates), default=0)
            best = [find for find in candidates if _alike(find.name, name) == closest]
            if len({find.size for find in best}) > 1:
                self.broken.append(f"{name}: {len(best)} different files are called so, none in its folder")
            elif best:
                return name, max(best, key=lambda find: find.file is not None)  # a link takes no space
        return None


@dataclass(frozen=True)
class Move:
    """What puts a file where it is wanted."""

    target: Path
    find: Find

    @property
    def bytes_needed(self) -> int:
        return 0 if self.find.file else self.find.size


def carry_out(moves: Iterable[Move]) -> Iterator[Path]:
    """Links files and takes others out of their archives, each archive read once. Yields each when it is there.

    Raises:
        BimbaError: an archive is damaged, or a file cannot be written.
    """
    of_archives: dict[Archive, dict[str, Path]] = {}
    for move in moves:
        if move.find.archive is not None:
            of_archives.setdefault(move.find.archive, {})[move.find.name] = move.target
        elif move.find.file is not None:
            _link(move.find.file, move.target)
            yield move.target
    for archive, targets in of_archives.items():
        yield from archive.take(targets)


def bytes_needed(moves: Iterable[Move]) -> int:
    return sum(move.bytes_needed for move in moves)


def _link(file: Path, target: Path) -> None:
    try:
        temporary = temporary_beside(target)
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(file.resolve())
        put(temporary, target)
    except OSError as error:
        raise BimbaError(f"{target} cannot be made a link to {file}: {error.strerror}.") from error


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if path.is_file() and os.access(path, os.R_OK):
                yield path


def _alike(name: str, wanted: str) -> int:
    """How many folders, from the last on, two paths share."""
    count = 0
    for a, b in zip(reversed(PurePosixPath(name).parts), reversed(PurePosixPath(wanted).parts)):
        if a != b:
            break
        count += 1
    return count
