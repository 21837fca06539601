"""Folders of frames, and images."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from bimba.data.media import image_size, read_image, read_video
from bimba.types import ImageReadError, ShortVideoError, VideoDecodeError
from tests.data.files import frame_numbers, numbered_frames


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(numbered_frames(12)):
        Image.fromarray(frame).save(folder / f"{number}.png")  # 10.png comes before 2.png by name
    (folder / "notes.txt").write_text("no frame")
    return folder


def test_a_folder_of_frames_is_a_video(frames):
    video = read_video(frames, 12)
    assert frame_numbers(video.pixels) == list(range(12))
    assert video.pixels.dtype == np.uint8
    sampled = read_video(frames, 4)
    assert frame_numbers(sampled.pixels) == sampled.indices.tolist() == [0, 3, 7, 11]
    assert (sampled.num_total, sampled.average_fps, sampled.duration_s, sampled.path) == (12, 2.0, 6.0, str(frames))
    assert sampled.times_s.tolist() == [0, 1.5, 3.5, 5.5]
    assert read_video(frames, 4, folder_fps=1).duration_s == 12


def test_a_short_folder(frames):
    with pytest.raises(ShortVideoError, match="12 frames, and 13 were asked for"):
        read_video(frames, 13)
    assert frame_numbers(read_video(frames, 13, "repeat").pixels)[:3] == [0, 0, 1]


def test_folders_that_are_no_video(frames, tmp_path):
    (frames / "5.png").write_text("damaged")
    with pytest.raises(VideoDecodeError, match=r"frames: one of its frames.*5\.png: not an image"):
        read_video(frames, 12)
    Image.new("RGB", (8, 8)).save(frames / "5.png")
    with pytest.raises(VideoDecodeError, match="frames of different sizes"):
        read_video(frames, 12)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoDecodeError, match="empty: a folder without frames"):
        read_video(tmp_path / "empty", 4)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_images_of_all_kinds_are_rgb(tmp_path, mode):
    Image.new(mode, (5, 3)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert (image.mode, image.size) == ("RGB", (5, 3))


@pytest.mark.parametrize("lenient", [False, True])
def test_images_that_are_none(tmp_path, monkeypatch, lenient):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)  # importing lmms_eval sets it
    whole = tmp_path / "whole.png"
    Image.fromarray(numbered_frames(1)[0]).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:60])
    (tmp_path / "text.png").write_text("<html>")
    for name, words in (
        ("nowhere.png", "there is no such file"),
        (".", "a folder"),
        ("cut.png", "not an image that can be read"),
        ("text.png", "not an image that can be read"),
    ):
        with pytest.raises(ImageReadError, match=words) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_paths_that_the_system_does_not_look_at(tmp_path):
    path = tmp_path / ("a" * 300)
    with pytest.raises(VideoDecodeError, match=r"aaa: cannot be read \(File name too long\)"):
        read_video(path, 4)
    for read in (read_image, image_size):
        with pytest.raises(ImageReadError, match=r"aaa: cannot be read \(File name too long\)"):
            read(path)


@pytest.mark.parametrize("call", ["stat", "iterdir"])
def test_folders_out_of_reach(frames, monkeypatch, call):
    def refused(self, **options):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, call, refused)
    with pytest.raises(VideoDecodeError, match=r"frames: cannot be read \(Permission denied\)"):
        read_video(frames, 4)
