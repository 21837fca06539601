"""Which video is meant: what differs in what is read of it is another one."""

from __future__ import annotations

import os

import pytest
from tiny_checkpoint import write_video

from bimba.inference.source import identify
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
