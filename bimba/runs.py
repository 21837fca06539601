"""What a run leaves for others to read: ``run.json``, and the state of the code it was made with. Without torch."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

from filelock import FileLock

log = logging.getLogger(__name__)

RUN_FILE = "run.json"


def read_run(run_dir: Path) -> dict[str, Any] | None:
    """What ``run.json`` of a folder says; None without one, or where it is none."""
    try:
        values = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def lock_of_run(run_dir: Path) -> FileLock:
    """Held by the process that trains in a folder; the system lets go of it when that process ends, however."""
    run_dir.mkdir(parents=True, exist_ok=True)
    return FileLock(run_dir / "run.lock")


def write_json(path: Path, content: Any) -> None:
    """Replaces a file, which no reader ever sees half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository around ``folder``, whether files that git knows differ from it; None without one."""
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.info("git %s: %s; the commit is not recorded.", arguments[0], error)
        return None
    return done.stdout.strip() if done.returncode == 0 else None  # installed from a wheel: there is no repository
