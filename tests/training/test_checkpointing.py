import os
import resource

import pytest
import torch

from bimba.training.checkpointing import (
    WholeFiles,
    check_whole,
    manifest_path,
    newest_first,
    newest_whole,
    remove_unfinished,
    write_whole,
)
from bimba.types import BimbaError


class PowerCut(BaseException):
    """Nothing runs after it."""


def content(step):
    return {"global_step": step, "weights": torch.full((1000,), float(step))}


def write(folder, step):
    path = folder / f"step_{step:08d}.ckpt"
    write_whole(content(step), path, {"seed": step})
    return path


def test_what_was_written_is_whole(tmp_path):
    path = write(tmp_path, 3)
    manifest = check_whole(path)
    assert (manifest.step, manifest.config, manifest.size) == (3, {"seed": 3}, path.stat().st_size)
    assert torch.equal(torch.load(path, weights_only=True)["weights"], content(3)["weights"])
    assert newest_whole(tmp_path) == path
    assert {p.name for p in tmp_path.iterdir()} == {path.name, manifest_path(path).name}


@pytest.mark.parametrize("overwrite", [False, True], ids=["another_step", "the_same_step_again"])
def test_there_is_a_whole_one_whenever_the_power_goes(tmp_path, monkeypatch, overwrite):
    """Before each of the calls that change what is on the disk, one after the other."""
    cuts = 0
    while True:
        folder = tmp_path / str(cuts)
        write(folder, 1)
        write(folder, 2)
        calls = 0

        def cut(real, at=cuts):
            def call(*arguments):
                nonlocal calls
                calls += 1
                if calls > at:
                    raise PowerCut
                return real(*arguments)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "replace"):
                patch.setattr(f"os.{name}", cut(getattr(os, name)))
            try:
                write(folder, 2 if overwrite else 3)
                is_cut = False
            except PowerCut:
                is_cut = True
        found = newest_whole(folder)
        assert found is not None
        step = torch.load(found, weights_only=True)["global_step"]
        assert step in ((1, 2) if overwrite else (2, 3))
        if not is_cut:
            break
        remove_unfinished(folder)
        assert newest_whole(folder) == found
        assert not list(folder.glob("*.unfinished"))
        cuts += 1
    assert cuts == 5  # file to the disk, manifest to the disk, two renames, folder to the disk


def damage(path, how):
    manifest = manifest_path(path)
    if how == "shorter":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "one bit":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "no manifest":
        manifest.unlink()
    elif how == "half a manifest":
        manifest.write_bytes(manifest.read_bytes()[:20])
    elif how == "another manifest":
        manifest.write_text('{"steps": 3}')
    elif how == "only a manifest":
        path.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("shorter", "bytes of the"),
        ("one bit", "is damaged"),
        ("no manifest", "has no manifest"),
        ("half a manifest", "json is damaged"),
        ("another manifest", "json is damaged"),
        ("only a manifest", "There is no file"),
    ],
)
def test_a_damaged_file_is_found_out_and_the_one_before_is_taken(tmp_path, how, message):
    before, last = write(tmp_path, 1), write(tmp_path, 2)
    damage(last, how)
    with pytest.raises(BimbaError, match=message):
        check_whole(last)
    assert newest_whole(tmp_path) == before


def test_the_newest_is_what_was_written_last_not_the_highest_step(tmp_path):
    abandoned, last = write(tmp_path, 9), write(tmp_path, 4)
    assert newest_first(tmp_path) == [last, abandoned]
    assert newest_whole(tmp_path) == last


def test_an_empty_folder_has_none(tmp_path):
    assert newest_whole(tmp_path) is None
    assert newest_whole(tmp_path / "nowhere") is None


@pytest.mark.parametrize("room", [100, 2000], ids=["from_the_start", "in_the_middle"])
def test_a_full_disk_leaves_what_there_was_and_says_so(tmp_path, room):
    before = write(tmp_path, 1)
    io = WholeFiles()
    path = tmp_path / "step_00000002.ckpt"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # as far as a file may grow
    try:
        io.save_checkpoint(content(2), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert io.failure == f"{path} could not be written: File too large"
    assert newest_whole(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 2
    io.save_checkpoint(content(2), path)
    assert io.failure is None
    assert newest_whole(tmp_path) == path
