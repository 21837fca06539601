"""Files to resume from: written so that a run can end at any moment, and checked before a run goes on from one.

A file ``step_00000100.ckpt`` is written under another name, flushed to the disk and then renamed, and so is the
manifest ``step_00000100.ckpt.json`` beside it, which has its size, its checksum and the configuration. A file is whole
if it is what its manifest says; one that was being written when the power went has no manifest, or none that fits.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from bimba.files import to_disk
from bimba.types import BimbaError

log = logging.getLogger(__name__)

_CHUNK_BYTES = 2**24
UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Manifest:
    """What is said of a checkpoint file.

    Attributes:
        step: optimizer steps that are done.
        saved_at: seconds since 1970.
        size: in bytes.
        sha256: of the file.
        config: of the run that wrote it.
    """

    step: int
    saved_at: float
    size: int
    sha256: str
    config: Mapping[str, Any] = field(default_factory=dict)


class WholeFiles(TorchCheckpointIO):
    """How Lightning writes its checkpoints here: whole or not at all, with a manifest.

    A file that cannot be written, on a full disk say, does not end the run: ``failure`` says why, and the files that
    are there stay.

    Args:
        config: of this run, for the manifests.

    Attributes:
        failure: why the last file could not be written; None if it was.
    """

    def __init__(self, config: Mapping[str, Any] | None = None):
        self.config = dict(config or {})
        self.failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None):
        try:
            write_whole(checkpoint, Path(path), self.config)
        except OSError as error:
            why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)
            self.failure = f"{path} could not be written: {why}"
        else:
            self.failure = None

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        remove(Path(path))


def manifest_path(path: Path) -> Path:
    """Where the manifest of a checkpoint file is."""
    return path.with_name(path.name + ".json")


def write_whole(checkpoint: dict[str, Any], path: Path, config: Mapping[str, Any] | None = None) -> None:
    """Writes a checkpoint and its manifest; whenever this is cut short, ``path`` does not pass for whole.

    Raises:
        OSError: it could not be written. Nothing of it is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = [path.with_name(name + UNFINISHED) for name in (path.name, manifest_path(path).name)]
    try:
        with unfinished[0].open("wb") as file:
            hashed: Any = _Hashed(file)
            try:
                torch.save(checkpoint, hashed)
            except RuntimeError:  # what torch makes of an error in the middle of its file
                if hashed.error is None:
                    raise
                raise hashed.error from None
            _flush_to_disk(file)
        step = int(checkpoint.get("global_step", 0))
        manifest = Manifest(step, time.time(), hashed.size, hashed.sha256.hexdigest(), config or {})
        with unfinished[1].open("wb") as file:
            file.write(json.dumps(asdict(manifest)).encode())
            _flush_to_disk(file)
    except OSError:
        for leftover in unfinished:
            leftover.unlink(missing_ok=True)
        raise
    os.replace(unfinished[0], path)
    os.replace(unfinished[1], manifest_path(path))
    to_disk(path.parent)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint file.

    Raises:
        BimbaError: there is none, or it makes no sense.
    """
    try:
        values = json.loads(manifest_path(path).read_text(encoding="utf-8"))
        return Manifest(**values)
    except FileNotFoundError:
        raise BimbaError(
            f"{path} has no manifest {manifest_path(path).name} beside it, so it was never finished, or not copied "
            "whole; take another file of that run."
        ) from None
    except (ValueError, TypeError) as error:
        raise BimbaError(f"{manifest_path(path)} is damaged ({error}); take another file of that run.") from error


def check_whole(path: Path) -> Manifest:
    """Compares a checkpoint file with its manifest, byte for byte.

    Raises:
        BimbaError: it is not what was written.
    """
    if not path.is_file():
        raise BimbaError(f"There is no file {path}.")
    manifest = read_manifest(path)
    size = path.stat().st_size
    if size != manifest.size:
        raise BimbaError(f"{path} has {size} bytes of the {manifest.size} that were written; take another file.")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != manifest.sha256:
        raise BimbaError(f"{path} is damaged: its bytes are not those that were written; take another file.")
    return manifest


def newest_whole(folder: Path) -> Path | None:
    """The file of a folder that was written last and is whole; None if there is none. Others are warned of."""
    for path in newest_first(folder):
        try:
            check_whole(path)
        except BimbaError as error:
            log.warning("Not resumed from: %s", error)
        else:
            return path
    return None


def newest_first(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, the one that was written last first; those without a manifest come last."""
    found: list[tuple[float, Path]] = []
    for path in folder.glob("*.ckpt"):
        try:
            found.append((read_manifest(path).saved_at, path))
        except BimbaError:
            found.append((0.0, path))
    return [path for _, path in sorted(found, reverse=True)]


def remove(path: Path) -> None:
    """Removes a checkpoint file, its manifest first: what is left of an interrupted removal does not count as whole."""
    manifest_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed run was writing, and files without a manifest."""
    for path in folder.glob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)
    for path in folder.glob("step_*.ckpt"):
        if not manifest_path(path).is_file():
            path.unlink(missing_ok=True)


class _Hashed:
    """A file that knows the checksum of what was written, and the first error: torch reports another one."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self.sha256.update(data)
        num_bytes = memoryview(data).nbytes
        self.size += num_bytes
        return num_bytes

    def flush(self) -> None:
        self.file.flush()


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
