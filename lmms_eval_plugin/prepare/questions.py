"""A benchmark's questions: read where the task reads them, or brought there from a copy that is on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bimba.types import BimbaError
from lmms_eval_plugin.prepare.places import Find, Move, carry_out
from lmms_eval_plugin.prepare.rows import cache_folder, has_data_files, make_cache, read_rows
from lmms_eval_plugin.prepare.sources import Table

VNBENCH_REPOSITORY = "videoniah/VNBench"  # the annotation alone

Rows = list[dict[str, Any]]


def from_hub(table: Table, home: Path, copies: Sequence[Path], dry_run: bool) -> tuple[Rows, Path | None]:
    """Rows of a data set of the hub, and the copy that they had to be read from, if the cache does not have them.

    Args:
        copies: folders that may be copies of the repository.
        dry_run: leave the cache as it is.

    Raises:
        BimbaError: neither the cache nor a copy has them.
    """
    cache = cache_folder(home)
    try:
        return read_rows(table, cache), None
    except BimbaError as absent:
        usable = [folder for folder in copies if has_data_files(folder)]
        if not usable:
            raise
        try:
            if dry_run:
                with tempfile.TemporaryDirectory() as elsewhere:
                    copy = make_cache(table, usable, Path(elsewhere))
                    return read_rows(table, Path(elsewhere)), copy
            copy = make_cache(table, usable, cache)
            return read_rows(table, cache), copy
        except BimbaError as error:
            raise BimbaError(f"{absent}; {error}") from error


def of_vnbench(root: Path, copies: Sequence[Path], dry_run: bool) -> tuple[Rows, Path | None]:
    """The same for VNBench, whose annotation is a file beside its videos; a copy of it is linked there.

    Raises:
        BimbaError: neither ``root`` nor a copy has one, or it is not VNBench's.
    """
    from lmms_eval_plugin.tasks.vnbench.annotations import ANNOTATION, find_annotation, load_questions

    try:
        found = find_annotation(root)
    except BimbaError:
        for copy in (path.parent for folder in copies for path in _annotations(folder, ANNOTATION)):
            rows = load_questions(copy)
            target = root / find_annotation(copy).name
            if not dry_run:
                list(carry_out([Move(target, Find(target.name, 0, file=find_annotation(copy)))]))
                return load_questions(root), copy
            return [{**row, "video": str(root / Path(row["video"]).relative_to(copy))} for row in rows], copy
        raise
    return load_questions(found.parent), None


def _annotations(folder: Path, name: str) -> list[Path]:
    """The published file anywhere below a folder, or the only JSON file in it."""
    named = sorted(folder.rglob(name))
    others = sorted(folder.glob("*.json"))
    return named or (others if len(others) == 1 else [])
