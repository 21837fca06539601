"""``bimba prepare`` without space on the disk."""

from __future__ import annotations

import errno
import shutil

from homes import snapshot
from hub_stand_in import Hub


def test_without_space_nothing_is_unpacked(empty, prepare, hub_root, monkeypatch):
    snapshot(empty, hub_root, "mlvu")
    usage = shutil.disk_usage(empty)._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    code, _, items = prepare("mlvu", "--offline")
    assert code == 1
    assert "has 10 bytes free; extracting needs " in items["mlvu"]["problems"][1]
    assert items["mlvu"]["disk"][1].startswith("10 bytes free")
    assert not (empty / "mlvu").exists()


def test_without_space_nothing_is_downloaded(empty, prepare, hub_root, monkeypatch):
    usage = shutil.disk_usage(empty)._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with Hub(hub_root) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        code, _, items = prepare("mlvu")
    assert code == 1
    assert "downloading sy1998/MLVU_dev (" in items["mlvu"]["problems"][1]
    assert not [path for path in empty.rglob("*") if path.suffix in (".zip", ".parquet", ".mp4")]


def test_a_disk_that_fills_up_leaves_whole_files_and_it_goes_on(empty, prepare, hub_root, monkeypatch):
    snapshot(empty, hub_root, "mlvu")
    copy, count = shutil.copyfileobj, 0

    def full_at_the_second(source, target, *length):
        nonlocal count
        count += 1
        if count == 2:
            target.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target, *length)

    with monkeypatch.context() as patch:
        patch.setattr("lmms_eval_plugin.prepare.archives.shutil.copyfileobj", full_at_the_second)
        code, _, items = prepare("mlvu", "--offline")
    assert code == 1
    assert "No space left on device. What was written stays" in items["mlvu"]["problems"][1]
    assert [path.name for path in (empty / "mlvu").iterdir()] == ["0_film.mp4"]
    written = (empty / "mlvu/0_film.mp4").stat().st_mtime_ns
    code, _, items = prepare("mlvu", "--offline")
    assert code == 0
    assert "extract 1 files" in items["mlvu"]["disk"][1]
    assert (empty / "mlvu/0_film.mp4").stat().st_mtime_ns == written
