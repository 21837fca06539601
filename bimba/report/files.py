"""Result files: written whole or not at all, by one run at a time, read with an error that names what is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bimba.types import BimbaError

LOCK = "evaluation.lock"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Makes a folder, and keeps other evaluations from writing to it.

    Raises:
        BimbaError: another evaluation holds it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(str(folder / LOCK))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if lock.is_locked:  # by this very process, where the harness has made locks re-entrant
            raise Timeout(lock.lock_file)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BimbaError(
            f"Another evaluation is writing to {folder}. Wait until it has ended, or give another output_dir."
        ) from error
    except OSError as error:
        raise BimbaError(f"{folder} cannot be written ({error.strerror}); give another output_dir.") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def results_in(folder: Path) -> Iterator[None]:
    """Around whatever writes what an evaluation found.

    Raises:
        BimbaError: in place of an ``OSError``, such as that of a full disk.
    """
    try:
        yield
    except OSError as error:
        raise unwritten(folder, error) from error


def unwritten(folder: Path, error: OSError) -> BimbaError:
    """What to say where what an evaluation found cannot be written."""
    return BimbaError(
        f"Results cannot be written to {folder} ({error.strerror or error}). The answers are kept in "
        f"{folder / 'journal'}: free some space, and the same command takes them from there. Those that the journal "
        "had no room for are asked again."
    )


def write_bytes(path: Path, content: bytes) -> None:
    """Writes beside ``path`` and renames into place, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def write_json(path: Path, content: Mapping[str, Any], default: Callable[[Any], Any] | None = None) -> None:
    """Writes JSON as ``write_bytes`` does.

    Args:
        default: turns what JSON does not know into what it knows, as in ``json.dumps``.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, default=default) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"))  # a file's name may be no UTF-8; JSON escapes it so


def read_summary(folder: Path) -> dict[str, Any]:
    """The ``summary.json`` that ``evaluate.py`` left in a folder.

    Raises:
        BimbaError: there is none, or it is not one.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise BimbaError(f"No summary.json in {folder}; run `bimba evaluate output_dir={folder}` first.")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or not even text
        raise BimbaError(f"{path} is not JSON ({error}); run the evaluation again.") from error
    if not isinstance(summary, dict) or not summary.get("tasks"):
        raise BimbaError(f"{path} has no tasks; expected the summary of an evaluation (run evaluate.py again).")
    return summary
