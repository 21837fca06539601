"""The rows of a mixture as one memory-mapped Arrow file: built once, opened by everybody at almost no cost.

A million rows as Python objects are two gigabytes in every worker, copied page by page by the mere counting of
references to them. Here a row is bytes in a file that all processes of a machine map, and only the pages that are read
are in memory.

An index belongs to the *contents* of the annotation files and to what is taken of them, not to their names: a copied or
touched file is recognised. Two processes that ask at once build once, and an index is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from bimba.data.index_rows import MODALITIES, SCHEMA, RowTable
from bimba.data.mixture import Mixture
from bimba.data.rows import place
from bimba.files import to_disk
from bimba.types import BimbaError

log = logging.getLogger(__name__)

LISTED = 20  # how many problems a message lists
_VERSION = 2  # of what an index holds, and of what rows are refused


@dataclass(frozen=True)
class Problem:
    """Something wrong with an annotation file.

    Attributes:
        file: position in ``Mixture.sources``.
        number: of the row, see ``rows.place``; None: the file as a whole.
        why: what is wrong, and what was expected.
    """

    file: int
    number: int | None
    why: str

    def text(self, mixture: Mixture) -> str:
        path = mixture.sources[self.file].path
        return f"{path if self.number is None else place(path, self.number)}: {self.why}"


class Index:
    """The sound rows of a mixture, in its order.

    Attributes:
        folder: where it lies.
        sources: names of where rows come from: their ``data_source``, or else the name of their file.
        problems: what is wrong with the others, and ``num_problems``, which may be more.
        duplicates: rows whose id an earlier row of their file has; they are in the index. ``num_duplicates``.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        about = json.loads((folder / "about.json").read_bytes())
        self.sources: list[str] = about["sources"]
        self.problems = [Problem(*problem) for problem in about["problems"]]
        self.num_problems: int = about["num_problems"]
        self.duplicates = [Problem(*problem) for problem in about["duplicates"]]
        self.num_duplicates: int = about["num_duplicates"]
        self._table: pa.Table = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow"))).read_all()

    def __getstate__(self) -> Path:
        return self.folder  # a worker maps the file for itself

    def __setstate__(self, folder: Path) -> None:
        self.__init__(folder)  # type: ignore[misc]

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row(self, position: int) -> dict[str, Any]:
        """One row, as in its file."""
        row: dict[str, Any] = json.loads(self._table["row"][position].as_py())
        return row

    def value(self, name: str, position: int) -> int:
        """One number of one row: the column ``name`` of the file."""
        return int(self._table[name][position].as_py())

    def column(self, name: str) -> np.ndarray:
        """That number of every row."""
        return self._table[name].to_numpy()

    def modality(self, position: int) -> str:
        return MODALITIES[self.value("modality", position)]

    def source(self, position: int) -> str:
        return self.sources[self.value("source", position)]


def index_folder() -> Path:
    """Where indices are kept: ``$BIMBA_INDEX_DIR``, or ``bimba/index`` in the user's cache."""
    if named := os.environ.get("BIMBA_INDEX_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bimba" / "index"


def open_index(mixture: Mixture, literal_tags: bool = False, folder: Path | None = None) -> Index:
    """The index of a mixture, built if there is none yet.

    Args:
        literal_tags: see ``rows.problem_of``.
        folder: where indices are kept; None: :func:`index_folder`.

    Raises:
        BimbaError: the folder cannot be written to; an annotation file cannot be read, or changes while it is. Broken
            rows and files are ``Index.problems``.
    """
    folder = index_folder() if folder is None else folder
    about = [[source.path.suffix, str(source.take)] for source in mixture.sources]
    stems = [source.path.stem for source in mixture.sources]  # they name the source of rows that do not say
    settings = [_VERSION, literal_tags, about, stems]
    stamp = folder / f"{_digest([settings, [_stamp(source.path) for source in mixture.sources]])}.stamp"
    with _written_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Files of these sizes and times were read before?
        if stamp.is_file() and (index := _opened(folder / stamp.read_text())) is not None:
            return index
    contents = [_contents(source.path) for source in mixture.sources]
    key = _digest([settings, contents])
    with _written_to(folder), FileLock(folder / f"{key}.lock"):
        index = _opened(folder / key)
        if index is None:
            log.info("Indexing %d annotation files of %s, once", len(mixture.sources), mixture.name)
            _build(mixture, literal_tags, contents, folder / key)
            index = Index(folder / key)
        _write_atomically(stamp, key)
    return index


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BimbaError(
            f"{folder}: the index of the annotations cannot be written there ({error.strerror or error}). Set "
            "BIMBA_INDEX_DIR to a folder with room."
        ) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise BimbaError(f"{path}: cannot be read ({why}). Expected annotations; check its permissions.") from error


def _opened(path: Path) -> Index | None:
    """The index in a folder; None: there is none, or none that is whole, as after a power failure."""
    if not path.is_dir():
        return None
    try:
        return Index(path)
    except (OSError, ValueError) as error:  # pa.ArrowInvalid and json's errors are ValueErrors
        log.warning("%s is not an index that can be read (%s); it is built again", path, error)
        return None


def _stamp(path: Path) -> list[Any]:
    with _reading(path):
        status = path.stat()
        return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _contents(path: Path) -> str:
    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _write_atomically(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def _build(mixture: Mixture, literal_tags: bool, contents: list[str], destination: Path) -> None:
    """Writes an index.

    Args:
        contents: of the annotation files, as of :func:`_contents`: what they have to be still when all is read.
    """
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: the lock is ours
    partial.mkdir()
    try:
        builder = RowTable(literal_tags)
        with pa.OSFile(str(partial / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            for position, source in enumerate(mixture.sources):
                for batch in builder.batches(position, source):
                    writer.write_batch(batch)
        (partial / "about.json").write_text(json.dumps(builder.about()))
        for source, content in zip(mixture.sources, contents):
            if _contents(source.path) != content:
                raise BimbaError(f"{source.path}: changed while it was read. Start again when it is written.")
        for path in (partial / "rows.arrow", partial / "about.json", partial):
            to_disk(path)
        shutil.rmtree(destination, ignore_errors=True)  # one that is not whole
        os.replace(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check(
    index: Index,
    mixture: Mixture,
    skip_bad_rows: bool = False,
    allow_duplicate_ids: bool = False,
    empty_allowed: bool = False,
) -> None:
    """Raises a BimbaError that lists what is wrong with a mixture, unless it is to be put up with."""
    listed: list[str] = []
    if index.num_problems and not skip_bad_rows:
        listed += _list(
            index.problems, index.num_problems, mixture, "Rows or files that cannot be used", "data.bad_rows=skip"
        )
    elif index.num_problems:
        log.warning("%s: %d rows or files cannot be used and are skipped.", mixture.name, index.num_problems)
    if index.num_duplicates and not allow_duplicate_ids:
        remedy = "data.duplicate_ids=allow"
        listed += _list(index.duplicates, index.num_duplicates, mixture, "Rows that have another row's id", remedy)
    if listed:
        raise BimbaError(f"{mixture.name}: " + "\n".join(listed))
    if not len(index) and not empty_allowed:
        raise BimbaError(f"{mixture.name}: no rows. Expected at least one conversation that can be used.")


def _list(problems: Sequence[Problem], total: int, mixture: Mixture, what: str, remedy: str) -> list[str]:
    lines = [f"{what}: {total}. Repair them, or put up with them by {remedy}; `bimba data check` lists all."]
    lines += [f"  {problem.text(mixture)}" for problem in problems[:LISTED]]
    return lines + ([f"  and {total - LISTED} more"] if total > LISTED else [])
