"""Training data as litdata's chunks, in a folder or in an object store: rows once, each medium once.

::

    item 0                a header: what was packed, and what the index is
    the next items        the index in pieces: the rows, and which medium is which item
    all others            a video, an image, or the frames of a folder as a tar, under the name that rows give it

Whoever opens it fetches the index, once per machine; a medium is fetched when its sample is read, and nothing else of
its chunk is. So any sample can be read at any time, and the order of samples, batches, resuming and validation are
those of files on a disk. :mod:`bimba.data.packing` writes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
import threading
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock

from bimba.data.index import Index, index_folder
from bimba.data.mixture import Mixture, Source, Take
from bimba.data.packed_items import FORMAT, HEADER, INDEX_FILES, name_of, unpack
from bimba.data.rows import VIDEO
from bimba.files import to_disk
from bimba.types import BimbaError, ImageReadError, VideoDecodeError

STORES = ("s3://", "gs://", "r2://", "azure://", "local:")  # what litdata reads other than a folder


def check_litdata() -> None:
    """Raises a BimbaError where litdata is not installed."""
    if find_spec("litdata") is None:
        raise BimbaError(
            'litdata, which reads and writes packed data, is not installed: pip install "bimba[streaming]"'
        )


def is_store(place: str) -> bool:
    return place.startswith(STORES)


@dataclass(frozen=True)
class Packed:
    """Where packed data lie: a folder, or the address of one in an object store."""

    source: str

    @property
    def name(self) -> str:
        return self.source

    def open(self, literal_tags: bool = False, folder: Path | None = None) -> tuple[Mixture, Index, PackedMedia]:
        """What was packed, its rows and its media.

        Args:
            literal_tags: of the recipe, see ``rows.problem_of``.
            folder: where indices are kept; None: ``index.index_folder``.

        Raises:
            BimbaError: litdata is not installed, there is nothing of the kind there, or it is of another recipe.
        """
        check_litdata()
        folder = (index_folder() if folder is None else folder) / "packed"
        items = _Items(self.source, folder / "litdata")
        header = _header(self.source, items)
        if header["literal_tags"] != literal_tags:
            raise BimbaError(
                f"{self.source}: packed for recipes with literal_tags={header['literal_tags']}, and this one has "
                f"{literal_tags}: rows that one refuses the other takes. Pack it with the data.recipe of the run."
            )
        index = _fetched(self.source, items, header, folder)
        paths = {key: None if header[key] is None else Path(header[key]) for key in ("video_root", "image_root")}
        sources = tuple(
            Source(Path(file), Take.parse(take), *(None if own is None else Path(own) for own in folders))
            for file, take, *folders in header["sources"]
        )
        mixture = Mixture(self.source, sources, **paths)
        media = PackedMedia(self.source, index / "media.arrow", folder / "litdata", 1 + header["pieces"])
        return mixture, Index(index), media


class _Items:
    """The items of one place, fetched one at a time; each process opens it for itself."""

    def __init__(self, source: str, cache: Path):
        self.source, self.cache = source, cache
        self._opened: tuple[int, Any] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[str, Path]:
        return self.source, self.cache

    def __setstate__(self, state: tuple[str, Path]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __getitem__(self, number: int) -> tuple[str, str, bytes]:
        """What it is, its name, its bytes.

        Raises:
            OSError, ValueError, ...: see :func:`_fetch_errors`.
        """
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                from litdata import StreamingDataset

                self.cache.mkdir(parents=True, exist_ok=True)
                self._opened = os.getpid(), StreamingDataset(self.source, cache_dir=str(self.cache))
            kind, name, data = self._opened[1][number]
        return kind, name, bytes(data)  # of a folder it is memory that litdata unmaps


def _fetch_errors() -> tuple[type[Exception], ...]:
    """What litdata raises where something is not there, cannot be reached, or is not what it should be."""
    from botocore.exceptions import BotoCoreError, ClientError  # litdata needs it

    return OSError, ValueError, LookupError, RuntimeError, struct.error, BotoCoreError, ClientError


def _header(source: str, items: _Items) -> dict[str, Any]:
    expected = "Expected a folder, or an address such as s3://bucket/folder, that `bimba data pack` wrote to the end"
    if not is_store(source) and not (Path(source) / "index.json").is_file():
        raise BimbaError(f"{source}: no packed data. {expected}.")
    try:
        kind, _, data = items[0]
    except _fetch_errors() as error:
        raise BimbaError(f"{source}: cannot be opened ({_in_a_line(error)}). {expected}.") from error
    if kind != HEADER:
        raise BimbaError(f"{source}: litdata's chunks of something else. {expected}.")
    header: dict[str, Any] = json.loads(data)
    if header["format"] != FORMAT:
        raise BimbaError(f"{source}: of format {header['format']}, and this version reads {FORMAT}. Pack it again.")
    return header


def _fetched(source: str, items: _Items, header: dict[str, Any], folder: Path) -> Path:
    """The folder with the index, fetched if it is not there yet.

    Raises:
        BimbaError: it cannot be fetched or written, or is damaged.
    """
    key = hashlib.sha256(json.dumps(header).encode()).hexdigest()[:32]
    destination, partial = folder / key, folder / f".{key}.partial"
    with FileLock(folder / f"{key}.lock"):
        if destination.is_dir():
            return destination
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        try:
            digests = {name: hashlib.sha256() for name in INDEX_FILES}
            for number in range(1, 1 + header["pieces"]):
                _, name, data = items[number]
                digests[name].update(data)
                with (partial / name).open("ab") as file:
                    file.write(data)
            if {name: digest.hexdigest() for name, digest in digests.items()} != header["index"]:
                raise BimbaError(f"{source}: its index is damaged. Copy the folder again, or pack it again.")
            for name in (*INDEX_FILES, ""):
                to_disk(partial / name)
            os.replace(partial, destination)
        except _fetch_errors() as error:
            raise BimbaError(f"{source}: its index cannot be fetched to {folder} ({_in_a_line(error)}).") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return destination


class PackedMedia:
    """The media of packed data, by name.

    Args:
        source: where the items lie.
        table: says which they are, a file of ``MEDIA_SCHEMA``.
        cache: litdata's folder, for what it notes of an object store.
        start: the number of the first medium's item.
    """

    def __init__(self, source: str, table: Path, cache: Path, start: int):
        self.source = source
        self._arguments = source, table, cache, start
        self._start = start
        self._items = _Items(source, cache)
        self._media: pa.Table = pa.ipc.open_file(pa.memory_map(str(table))).read_all()

    def __getstate__(self) -> tuple[str, Path, Path, int]:
        return self._arguments  # a worker maps the table for itself

    def __setstate__(self, state: tuple[str, Path, Path, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def item_of(self, path: Path) -> int | None:
        """Which item a medium is; None: it is not there."""
        names, name = self._media["name"], name_of(path)
        row = bisect_left(range(len(names)), name, key=lambda i: names[i].as_py())
        if row == len(names) or names[row].as_py() != name:
            return None
        return self._start + int(self._media["place"][row].as_py())

    @contextmanager
    def at_hand(self, path: Path, kind: str) -> Iterator[Path]:
        """A medium as a file, or a folder of frames, as long as the context lasts.

        What goes wrong with it there names ``path``, and not the file.

        Raises:
            VideoDecodeError: of a video that is not there or cannot be fetched.
            ImageReadError: of an image likewise.
        """
        raised = VideoDecodeError if kind == VIDEO else ImageReadError
        number = self.item_of(path)
        if number is None:
            raise raised(f"{path}: there was no such file when {self.source} was packed. Pack it again with the file.")
        try:
            what, name, data = self._items[number]
        except _fetch_errors() as error:
            raise raised(f"{path}: cannot be fetched from {self.source} ({_in_a_line(error)}).") from error
        if name != name_of(path):
            raise BimbaError(f"{self.source}: item {number} is {name}, and {path} was expected. Pack it again.")
        with tempfile.TemporaryDirectory(prefix="bimba-medium-") as scratch:
            file = Path(scratch) / path.name
            unpack(what, data, file)
            del data  # a video's bytes would be kept while it is decoded
            try:
                yield file
            except (VideoDecodeError, ImageReadError) as error:
                raise type(error)(str(error).replace(str(file), str(path))) from error


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
