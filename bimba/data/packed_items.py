"""The items of packed data (:mod:`bimba.data.packed`): files to bytes, and bytes to files.

Apart, as the processes that pack import it, which need nothing else of ours.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

FORMAT = 1
HEADER, PIECE, FILE, FOLDER = "header", "piece", "file", "folder"  # what an item is
PIECE_BYTES = 32 << 20  # of the index
INDEX_FILES = ("about.json", "rows.arrow", "media.arrow")
# Sorted by name; place: among the media, in the order of their items.
MEDIA_SCHEMA = pa.schema([("name", pa.large_string()), ("place", pa.int64())])


def name_of(path: str | os.PathLike[str]) -> str:
    """A medium's name: its path from the folder that all media lie below, with nothing superfluous in it."""
    return os.path.normpath(path).replace(os.sep, "/")


@dataclass(frozen=True)
class Content:
    """The items by number, made when they are asked for; litdata's processes have a copy of it."""

    header: dict[str, Any]
    pieces: list[tuple[str, Path, int]]
    media: list[tuple[str, str]]

    def __len__(self) -> int:
        return 1 + len(self.pieces) + len(self.media)

    def __call__(self, number: int) -> tuple[str, str, bytes]:
        # No dict: litdata keeps those in a way of which it cannot fetch one alone.
        if number == 0:
            return HEADER, "", json.dumps(self.header).encode()
        if number <= len(self.pieces):
            name, path, start = self.pieces[number - 1]
            with path.open("rb") as file:
                file.seek(start)
                return PIECE, name, file.read(PIECE_BYTES)
        name, source = self.media[number - 1 - len(self.pieces)]
        if os.path.isdir(source):
            return FOLDER, name, _tar(Path(source))
        return FILE, name, Path(source).read_bytes()


def _tar(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file in sorted(folder.iterdir()):
            if file.is_file():
                archive.add(file, file.name)
    return buffer.getvalue()


def unpack(what: str, data: bytes, file: Path) -> None:
    """Writes a medium to ``file``, which becomes a folder where frames were packed."""
    if what == FILE:
        file.write_bytes(data)
        return
    file.mkdir()
    with tarfile.open(fileobj=io.BytesIO(data)) as frames:
        for member in frames:
            content = frames.extractfile(member)
            if content is not None:
                (file / Path(member.name).name).write_bytes(content.read())
