"""The questions of a benchmark, read as the harness reads them without a hub: from the cache of the library datasets.

That cache is not what a download leaves (a snapshot of the repository), and without a hub the harness reads nothing
else. So it is made here from a snapshot, or from a folder that someone copied, by the library itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bimba.types import BimbaError, first_line
from lmms_eval_plugin.prepare.sources import Table

DATA_FILES = (".parquet", ".json", ".jsonl", ".csv", ".arrow")


def cache_folder(home: Path) -> Path:
    """Where the harness keeps the cache: below HF_HOME, but on a disk of this machine if that is on the network.

    The harness's own function (``lmms_eval.api.task._resolve_hf_datasets_cache_dir``) makes the folder and keeps its
    first answer; a test compares the two.
    """
    from lmms_eval.caching.fs_detect import FsType, detect_fs_type, find_local_scratch

    if explicit := os.environ.get("LMMS_EVAL_DATASETS_CACHE", "").strip():
        return _expanded(explicit)
    folder = _expanded(os.environ.get("HF_DATASETS_CACHE", str(home / "datasets")))
    scratch = find_local_scratch() if detect_fs_type(str(folder)) is FsType.REMOTE else None
    if scratch is None:
        return folder
    return Path(scratch, "lmms_eval_hf_datasets", os.environ.get("USER", "unknown"))


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def folder_of(table: Table, cache: Path) -> Path:
    """The data set's own folder in the cache, whether it is there or not."""
    from datasets.naming import camelcase_to_snakecase

    owner, name = table.repository.split("/")
    return cache / f"{owner}___{camelcase_to_snakecase(name)}"


def read_rows(table: Table, cache: Path) -> list[dict[str, Any]]:
    """The split that the task asks about. Leaves no trace: HF_HOME may be read-only.

    Raises:
        BimbaError: it is not in the cache, or not readable.
    """
    from datasets.packaged_modules.cache.cache import Cache  # what load_dataset uses when there is no hub

    folder = folder_of(table, cache)
    if not folder.is_dir():
        raise BimbaError(f"not in {folder}")
    try:
        # By way of a link, because the library puts a lock beside the folder.
        with tempfile.TemporaryDirectory() as beside:
            Path(beside, folder.name).symlink_to(folder.resolve(), target_is_directory=True)
            builder = Cache(
                cache_dir=beside,
                dataset_name=table.repository.split("/")[1],
                repo_id=table.repository,
                config_name=table.config,
                version="auto",
                hash="auto",
            )
            rows = builder.as_dataset(split=table.split).to_list()
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise BimbaError(f"{folder}: {first_line(error.__cause__ or error)}") from error
    if not rows:
        raise BimbaError(f"{folder}: no rows in {table.split}")
    return rows


def has_data_files(folder: Path) -> bool:
    """Does a folder look like a data set's repository (rather than one of videos alone)?"""
    return any(path.suffix in DATA_FILES for pattern in ("*", "*/*") for path in folder.glob(pattern))


def make_cache(table: Table, folders: Sequence[Path], cache: Path) -> Path:
    """Fills the cache from the first folder that holds a copy of the repository with this table; returns that folder.

    Raises:
        BimbaError: none does; what is said of each is in the message.
    """
    said = []
    for folder in folders:
        try:
            _make_cache(table, folder, cache)
        except BimbaError as error:
            said.append(str(error))
        else:
            return folder
    raise BimbaError("; ".join(said) or "no copy of the repository is here")


def _make_cache(table: Table, folder: Path, cache: Path) -> None:
    from datasets.exceptions import DatasetGenerationError

    final = folder_of(table, cache)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _build(table, folder, final)
    except (ValueError, OSError, TypeError, DatasetGenerationError) as error:
        why = first_line(error.__cause__ or error)
        raise BimbaError(f"{folder} cannot be read as {table.repository}: {why}") from error


def _build(table: Table, folder: Path, final: Path) -> None:
    from datasets import load_dataset_builder

    # In the cache itself, so that what is ready can be moved to its place at once.
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".bimba-") as workshop:
        # The library calls the data set as its folder is called, and a snapshot's folder is called by a hash.
        copy = Path(workshop, table.repository.split("/")[1])
        copy.symlink_to(folder.resolve(), target_is_directory=True)
        builder = load_dataset_builder(str(copy), table.config, cache_dir=str(Path(workshop, "cache")))
        builder.download_and_prepare()
        if table.split not in (builder.info.splits or {}):
            raise BimbaError(
                f"{folder}: {table.repository} without {table.split}, only {list(builder.info.splits or {})}"
            )
        place = final / builder.config.name / "0.0.0" / f"from-{folder.name}"
        if place.exists():
            shutil.rmtree(place)  # what could not be read
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(builder.cache_dir, place)
