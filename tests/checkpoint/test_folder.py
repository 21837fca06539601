"""Folders that appear whole or not at all: where they may be, and what is left when writing or renaming fails."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from bimba.checkpoint import folder as folders
from bimba.checkpoint.folder import whole_folder
from bimba.types import BimbaError


def write(folder, text="new", **options):
    with whole_folder(folder, **options) as partial:
        (partial / "config.json").write_text(f'{{"model_type": "bimba", "text": "{text}"}}')


def half_written(folder, error):
    with whole_folder(folder, replace=True) as partial:
        (partial / "half").touch()
        raise error


def text(folder):
    return (folder / "config.json").read_text().split('"')[-2]


@pytest.fixture
def old(tmp_path):
    """A checkpoint that is there already, alone in its folder."""
    write(tmp_path / "checkpoint", "old")
    return tmp_path / "checkpoint"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# -- where it may be ---------------------------------------------------------------------------------------------


def test_parents_are_made(tmp_path):
    write(tmp_path / "a/b/c")
    assert text(tmp_path / "a/b/c") == "new"
    assert names(tmp_path / "a/b") == ["c"]


def test_a_link_stays_one_and_what_it_points_to_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    for target in ("disk/empty", "disk/absent"):
        link = tmp_path / Path(target).name
        link.symlink_to(target)
    (tmp_path / "disk/empty").mkdir()
    for name in ("empty", "absent"):
        write(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert text(tmp_path / "disk" / name) == "new"
    assert names(tmp_path) == ["absent", "disk", "empty"]
    assert names(tmp_path / "disk") == ["absent", "empty"]


def test_the_working_directory_is_not_pulled_from_under_the_shell(tmp_path, monkeypatch):
    (tmp_path / "here/below").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(BimbaError, match=r"\. is the working directory.*give a folder in it, such as .*empty/bimba\."):
        write(".")
    monkeypatch.chdir(tmp_path / "here/below")
    with pytest.raises(BimbaError, match="exists already"):
        write("..")
    assert names(tmp_path) == ["empty", "here"]


def test_a_mount_point_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "disk")
    (tmp_path / "disk").mkdir()
    with pytest.raises(BimbaError, match="is a mount point and cannot be replaced; give a folder in it"):
        write(tmp_path / "disk")
    write(tmp_path / "disk/bimba")


def test_a_file_is_no_place(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BimbaError, match="file exists already and is no folder"):
        write(tmp_path / "file", replace=True)
    with pytest.raises(BimbaError, match=r"file/sub could not be written: .* \(\S*file\). What was there"):
        write(tmp_path / "file/sub")
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_a_loop_of_links_is_no_place(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BimbaError, match="loop could not be written"):
        write(tmp_path / "loop")
    assert names(tmp_path) == ["loop"]


def test_a_place_without_permission(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "there")

    monkeypatch.setattr(folders.tempfile, "mkdtemp", refused)
    with pytest.raises(BimbaError, match="b could not be written: Permission denied"):
        write(tmp_path / "a/b")
    assert names(tmp_path) == []  # the parent that was made is gone too


def test_a_checkpoint_is_replaced_only_where_that_is_asked_for(old):
    with pytest.raises(BimbaError, match="exists already"):
        write(old)
    assert text(old) == "old"
    write(old, replace=True)
    assert text(old) == "new" and names(old.parent) == ["checkpoint"]


def test_what_came_there_in_the_meantime_stays(tmp_path):
    writing = whole_folder(tmp_path / "there")
    (writing.__enter__() / "config.json").touch()
    (tmp_path / "there").mkdir()
    (tmp_path / "there/thesis.txt").write_text("years of work")
    with pytest.raises(BimbaError, match="exists already"):
        writing.__exit__(None, None, None)
    assert names(tmp_path) == ["there"] and names(tmp_path / "there") == ["thesis.txt"]


def test_files_can_be_read_by_others_and_folders_entered(tmp_path):
    with whole_folder(tmp_path / "new") as partial:
        (partial / "file").touch(mode=0o600)
        (partial / "sub").mkdir(mode=0o755)
    modes = {path.name: path.stat().st_mode & 0o777 for path in [tmp_path / "new", *(tmp_path / "new").iterdir()]}
    assert modes == {"new": 0o755, "file": 0o644, "sub": 0o755}


# -- what is left when it goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), SafetensorError("No space left on disk"), Exception("No space left")],
    ids=["the system", "safetensors", "tokenizers"],
)
def test_a_failed_write_is_one_error_that_says_where_and_why(old, error):
    with pytest.raises(BimbaError, match="checkpoint could not be written: No space left") as caught:
        half_written(old, error)
    assert caught.value.__cause__ is error
    assert names(old.parent) == ["checkpoint"] and text(old) == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BimbaError("not like that"), ValueError("a bug")])
def test_any_other_error_is_itself_and_leaves_nothing_either(old, error):
    with pytest.raises(type(error)) as caught:
        half_written(old, error)
    assert caught.value is error
    assert names(old.parent) == ["checkpoint"] and text(old) == "old"


def fail_renames(monkeypatch, *failing, error=None):
    """The renames with these numbers, from 0, fail."""
    count, rename = iter(range(100)), os.replace

    def replace(source, target):
        if next(count) in failing:
            raise error or OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(folders.os, "replace", replace)


@pytest.mark.parametrize("step", [0, 1])
def test_a_failed_rename_puts_the_old_one_back(old, monkeypatch, step):
    fail_renames(monkeypatch, step)
    with pytest.raises(BimbaError, match="checkpoint could not be written: Input/output error"):
        write(old, replace=True)
    assert names(old.parent) == ["checkpoint"] and text(old) == "old"


@pytest.mark.parametrize("step", [0, 1])
def test_an_interrupted_rename_puts_the_old_one_back(old, monkeypatch, step):
    fail_renames(monkeypatch, step, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(old, replace=True)
    assert names(old.parent) == ["checkpoint"] and text(old) == "old"


def test_an_old_one_that_cannot_be_put_back_is_kept_and_said_to_be_where_it_is(old, monkeypatch):
    fail_renames(monkeypatch, 1, 2)
    with pytest.raises(BimbaError, match="nor could the checkpoint that was there be put back") as caught:
        write(old, replace=True)
    [aside] = old.parent.iterdir()
    assert f"in {aside / 'checkpoint'};" in str(caught.value)
    assert text(aside / "checkpoint") == "old"


def test_an_old_one_that_cannot_be_deleted_is_reported(old, monkeypatch, caplog):
    delete = folders.shutil.rmtree

    def rmtree(path, ignore_errors=False):
        if ".old." in str(path):
            raise OSError(16, "Device or resource busy")
        delete(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(folders.shutil, "rmtree", rmtree)
    with caplog.at_level(logging.WARNING):
        write(old, replace=True)
    assert text(old) == "new"
    assert "could not be deleted" in caplog.text and "Device or resource busy" in caplog.text
