"""What an ``HF_HOME`` holds, and what a download of a benchmark leaves in one."""

from __future__ import annotations

import shutil
from pathlib import Path

from hub_stand_in import COMMIT

from lmms_eval_plugin.prepare.sources import SOURCES, table_of

ON_HUB = tuple(name for name in SOURCES if table_of(SOURCES[name]) is not None)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
NOWHERE = "http://127.0.0.1:9"


def tree(folder: Path) -> dict[str, tuple]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in [folder, *folder.rglob("*")]
    }


def snapshot(home: Path, hub_root: Path, name: str) -> Path:
    """What a download of the benchmark's repository leaves."""
    table = table_of(SOURCES[name])
    folder = home / "hub" / f"datasets--{table.repository.replace('/', '--')}"
    shutil.copytree(hub_root / table.repository, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT
