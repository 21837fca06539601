"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of ``folder`` at the end; an error changes nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)  # temporary folders and safetensors' files are private; a checkpoint is not
        for file in partial.iterdir():
            file.chmod(0o644)
        _replace(folder, partial)
    except BaseException:  # an interrupted write leaves nothing half-written behind
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _replace(folder: Path, partial: Path) -> None:
    """Puts ``partial`` in place of ``folder``, which may exist."""
    if not folder.exists():
        os.replace(partial, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.replace(folder, old / folder.name)
    try:
        os.replace(partial, folder)
    except BaseException:
        os.replace(old / folder.name, folder)
        raise
    finally:
        shutil.rmtree(old)
