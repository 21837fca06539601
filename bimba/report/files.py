"""Result files: written whole or not at all, read with an error that names what is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bimba.types import BimbaError


def write_json(path: Path, content: Mapping[str, Any], default: Callable[[Any], Any] | None = None) -> None:
    """Writes JSON beside ``path`` and renames it into place, so that a reader never sees half a file.

    Args:
        default: turns what JSON does not know into what it knows, as in ``json.dumps``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=default) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_summary(folder: Path) -> dict[str, Any]:
    """The ``summary.json`` that ``evaluate.py`` left in a folder.

    Raises:
        BimbaError: there is none, or it is not one.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise BimbaError(f"No summary.json in {folder}; run `python evaluate.py output_dir={folder}` first.")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BimbaError(f"{path} is not JSON ({error}); run the evaluation again.") from error
    if not isinstance(summary, dict) or not summary.get("tasks"):
        raise BimbaError(f"{path} has no tasks; expected the summary of an evaluation (run evaluate.py again).")
    return summary
