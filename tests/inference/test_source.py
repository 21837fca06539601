"""Which video is meant: what differs in what is read of it is another one."""

from __future__ import annotations

import os

import pytest
from tiny_checkpoint import write_video

from bimba.inference import source
from bimba.inference.source import content_mark, content_marks, identify
from bimba.types import BimbaError


def test_another_reader_may_read_other_frames(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4")
    usual = identify(path, 4, "error")
    assert usual == identify(path, 4, "error")
    monkeypatch.setenv("BIMBA_VIDEO_BACKEND", "pyav")
    assert identify(path, 4, "error") != usual  # the store and the cache do not take one for the other
    monkeypatch.setenv("BIMBA_VIDEO_BACKEND", "opencv")
    with pytest.raises(BimbaError, match="video backend is 'opencv'"):
        identify(path, 4, "error")


def test_a_file_that_was_written_anew_is_another(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    before = identify(path, 4, "error")
    os.utime(path, (1, 1))
    assert identify(path, 4, "error") != before


def test_the_mark_of_a_file_is_that_of_its_content(tmp_path):
    content = bytes(range(256)) * 4096  # 1 MiB
    middle = content[: 1 << 19] + b"another" * 20_000 + content[(1 << 19) + 140_000 :]
    files = {"a": content, "copy": content, "first": b"!" + content[1:], "last": content[:-1] + b"!"}
    files |= {"middle": middle, "longer": content + b"\0", "small": b"!", "empty": b""}
    paths = {name: tmp_path / name for name in files}
    for name, path in paths.items():
        path.write_bytes(files[name])
    os.utime(paths["copy"], (1, 1))
    marks = {name: content_mark(path) for name, path in paths.items()}
    assert marks["copy"] == marks["a"]
    assert len(set(marks.values())) == len(files) - 1
    assert content_mark(tmp_path) == "unreadable"


def test_each_file_is_marked_once_and_little_of_it_is_read(tmp_path, monkeypatch):
    paths = [str(tmp_path / name) for name in "ab"]
    for path in paths:
        with open(path, "wb") as file:
            file.truncate(1 << 36)  # 64 GiB without a block on the disk
    marked = []
    mark = source.content_mark
    monkeypatch.setattr(source, "content_mark", lambda path: (marked.append(path), mark(path))[1])
    marks = content_marks(paths * 3)
    assert sorted(marked) == paths
    assert marks == {path: mark(path) for path in paths}
