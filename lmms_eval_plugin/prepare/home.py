"""HF_HOME: which folder the harness will read, and whether the data is in another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bimba.types import BimbaError
from lmms_eval_plugin.prepare.sources import Source, table_of


def default_home() -> Path:
    """Where Hugging Face's libraries look without HF_HOME; evaluate.py goes by ~/.cache alone."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"


def choose_home(asked: str | None) -> Path:
    """The folder that ``--hf-home`` names, or HF_HOME, or the default; absolute. It may not exist yet.

    Raises:
        BimbaError: HF_HOME is not absolute, or a file.
    """
    named = os.environ.get("HF_HOME", "")
    if asked is None and named and not os.path.isabs(named):
        raise BimbaError(
            f"HF_HOME is {named!r}, which is not absolute; the harness would look for videos under the current folder. "
            "Set it to an absolute path, for example `export HF_HOME=$HOME/.cache/huggingface`."
        )
    home = Path(asked or named or Path.home() / ".cache/huggingface").expanduser().absolute()
    if home.exists() and not home.is_dir():
        raise BimbaError(f"HF_HOME is {home}, which is a file; expected a folder.")
    return home


def folder_of(source: Source, home: Path) -> Path:
    """Where the task looks for the benchmark's videos."""
    table = table_of(source)
    if table is None:
        from lmms_eval_plugin.tasks.vnbench.annotations import ROOT_VARIABLE

        return Path(os.environ.get(ROOT_VARIABLE) or home / "vnbench").absolute()
    return home / table.folder


def has_data(source: Source, home: Path) -> bool:
    """Is there anything of the benchmark below a folder: videos, or a download of its repository?"""
    table = table_of(source)
    folders = [home / (table.folder if table else "vnbench")]
    if table is not None:
        folders.append(home / "hub" / f"datasets--{table.repository.replace('/', '--')}")
    return any(folder.is_dir() and any(folder.iterdir()) for folder in folders)


def elsewhere(source: Source, home: Path, named: str = "") -> Path | None:
    """Another of the usual folders that has the benchmark's data, if this one has none of it.

    Args:
        named: one more folder to look at.
    """
    if has_data(source, home) or folder_of(source, home).is_dir():  # VNBench's may be anywhere
        return None
    usual = [*([Path(named)] if named else []), default_home(), Path.home() / ".cache/huggingface"]
    return next((folder for folder in usual if folder.absolute() != home and has_data(source, folder)), None)


def free_bytes(folder: Path) -> int:
    """Space on the disk of a folder that may not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
