"""Writes training data as litdata's chunks, to a folder or an object store (``bimba data pack``).

What is in them, :mod:`bimba.data.packed` says.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from bimba.data.dataset import VideoQADataset
from bimba.data.index import LISTED
from bimba.data.packed import check_litdata, is_store
from bimba.data.packed_items import FORMAT, INDEX_FILES, MEDIA_SCHEMA, PIECE_BYTES, Content, name_of
from bimba.types import BimbaError

_MOST_BYTES = (1 << 32) - (1 << 20)  # litdata counts a chunk's bytes in 32 bits


def pack(
    dataset: VideoQADataset,
    output: str,
    workers: int = 4,
    chunk_mb: int = 64,
    allow_missing: bool = False,
    say: Callable[..., Any] = print,
) -> None:
    """Packs the rows of a data set, and the media they name.

    Rows that cannot be used, and ids that two rows share, are remembered: who trains on it decides about them.

    Args:
        dataset: opened with whatever is wrong with it.
        output: a folder that is not there or empty, or an address such as ``s3://bucket/folder``.
        workers: processes that read files and write chunks.
        chunk_mb: how large a chunk gets; one with a larger medium has that alone.
        allow_missing: media that are not there are left out; their rows are then bad samples, as they are without
            packing.
        say: is told what is going on.

    Raises:
        BimbaError: litdata is not installed, media are missing or too large, or the output cannot be written.
    """
    check_litdata()
    if not is_store(output) and Path(output).exists() and (not Path(output).is_dir() or any(Path(output).iterdir())):
        raise BimbaError(f"{output}: is there already. Give a folder that is not there yet, or is empty.")
    if "://" in output and not is_store(output):
        raise BimbaError(f"{output}: no store that litdata writes to. Expected a folder, s3://, gs:// or r2://.")
    say(f"Looking for the media of {len(dataset.index)} rows")
    first = _media(dataset)
    root = _common_root(dataset)
    _check(dataset, first, allow_missing)
    media = [(name_of(os.path.relpath(path, root)), path) for path in first if os.path.exists(path)]
    with tempfile.TemporaryDirectory(prefix="bimba-pack-") as scratch:
        header, pieces = _index(dataset, root, [name for name, _ in media], Path(scratch))
        content = Content(header, pieces, media)
        say(f"Packing {len(media)} media into {output}")
        _optimize(content, output, workers, chunk_mb, Path(scratch))


def _media(dataset: VideoQADataset) -> dict[str, int]:
    """The paths of all media in the order of rows, and the first row that names each."""
    found: dict[str, int] = {}
    for row in range(len(dataset.index)):
        for path in dataset.media_paths(row)[1]:
            found.setdefault(os.path.abspath(path), row)
    return found


def _check(dataset: VideoQADataset, first: dict[str, int], allow_missing: bool) -> None:
    wrong = []
    for path, row in first.items():
        if not os.path.exists(path):
            if not allow_missing:
                wrong.append(f"{dataset.where(row)}: there is no {path}")
        elif os.path.isfile(path) and os.path.getsize(path) > _MOST_BYTES:
            wrong.append(f"{dataset.where(row)}: {path} is larger than 4 GB, which litdata cannot hold; re-encode it")
    if wrong:
        more = [f"and {len(wrong) - LISTED} more"] if len(wrong) > LISTED else []
        raise BimbaError(
            f"{dataset.mixture.name}: {len(wrong)} of {len(first)} media cannot be packed. --allow-missing leaves out "
            "what is not there.\n  " + "\n  ".join(wrong[:LISTED] + more)
        )


def _common_root(dataset: VideoQADataset) -> str:
    """The folder that all media lie below."""
    mixture = dataset.mixture
    folders = {mixture.video_root, mixture.image_root}
    for source in mixture.sources:
        folders |= {source.video_folder, source.image_folder}
    return os.path.commonpath([os.path.abspath(folder) for folder in folders if folder is not None] or [os.getcwd()])


def _index(
    dataset: VideoQADataset, root: str, names: list[str], scratch: Path
) -> tuple[dict[str, Any], list[tuple[str, Path, int]]]:
    """The header, and of each piece of the index its name, its file and where in that it begins."""
    files = {name: dataset.index.folder.absolute() / name for name in INDEX_FILES[:2]}
    files[INDEX_FILES[2]] = scratch / INDEX_FILES[2]
    order = sorted(range(len(names)), key=names.__getitem__)
    with pa.OSFile(str(files[INDEX_FILES[2]]), "wb") as sink, pa.ipc.new_file(sink, MEDIA_SCHEMA) as writer:
        writer.write_table(pa.table([[names[i] for i in order], order], schema=MEDIA_SCHEMA))
    pieces = [
        (name, path, start) for name, path in files.items() for start in range(0, path.stat().st_size, PIECE_BYTES)
    ]

    def below(folder: Path | None) -> str | None:
        return None if folder is None else name_of(os.path.relpath(folder, root))

    mixture = dataset.mixture
    lists = os.path.commonpath([os.path.abspath(source.path.parent) for source in mixture.sources])
    header = {
        "format": FORMAT,
        "literal_tags": dataset.recipe.literal_tags,
        "video_root": below(mixture.video_root),
        "image_root": below(mixture.image_root),
        "sources": [
            [name_of(os.path.relpath(s.path, lists)), str(s.take), below(s.video_folder), below(s.image_folder)]
            for s in mixture.sources
        ],
        "index": {name: _digest(path) for name, path in files.items()},
        "pieces": len(pieces),
        "media": len(names),
    }
    return header, pieces


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _optimize(content: Content, output: str, workers: int, chunk_mb: int, scratch: Path) -> None:
    from litdata import optimize
    from obstore.exceptions import BaseError  # litdata needs it

    (nowhere := scratch / "nowhere").mkdir()
    if not is_store(output):
        output = os.path.abspath(output)
    # litdata's progress bar goes to stderr; what it says on stdout are advertisements and addresses of its scratch.
    # A string that is the path of a file from where we are is to litdata that file, so we go where there is none.
    with _settings(scratch), contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(nowhere):
        try:
            optimize(
                content,
                list(range(len(content))),
                output,
                num_workers=min(workers, len(content)),
                chunk_bytes=chunk_mb << 20,
                keep_data_ordered=True,
                reorder_files=False,
                verbose=sys.stderr.isatty(),
            )
        except (OSError, RuntimeError, ValueError, BaseError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            # Of what went wrong in a process of its own litdata hands on the whole trace: its first cause.
            why = next((line for line in lines if "Error: " in line), lines[0])
            raise BimbaError(f"{output}: packing failed ({why}). Remove what is there and start again.") from error


@contextlib.contextmanager
def _settings(scratch: Path) -> Iterator[None]:
    """litdata's scratch folders are ours, not ``/tmp/chunks``; and it leaves the way processes start as it was."""
    folders = {f"DATA_OPTIMIZER_{key}CACHE_FOLDER": str(scratch / f"litdata{key}") for key in ("", "DATA_")}
    before = {key: os.environ.get(key) for key in folders}
    method = multiprocessing.get_start_method(allow_none=True)
    os.environ.update(folders)
    try:
        yield
    finally:
        multiprocessing.set_start_method(method, force=True)
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
