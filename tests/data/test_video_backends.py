"""Whoever reads a video: the frames that were asked for, the same pixels, and a word on who it was."""

from __future__ import annotations

import logging
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import bimba.data.video as video_module
from bimba.data.video import check_video, pyav, read_frames
from bimba.data.video import decord as decord_backend
from bimba.data.video import torchcodec as torchcodec_backend
from bimba.data.video.stream import probe
from bimba.types import BimbaError, VideoDecodeError
from tests.data.files import frame_numbers, numbered_frames, write_video
from tests.data.odd_videos import HIDDEN, KINDS, NUM_FRAMES, RATE, SIZE, TRIMMED_S, Kind, make, make_hidden

HAS_TORCHCODEC = torchcodec_backend.unavailable() is None
DECORD_IS_WRONG = [kind for kind in KINDS if not kind.by_decord]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("odd")


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(video_module, "_said", set())
    caplog.set_level(logging.INFO, logger="bimba.data.video")
    return caplog


def of(kind: Kind, folder: Path) -> Path:
    path = folder / kind.name
    return path if path.exists() else make(kind, folder)


def numbers(pixels: np.ndarray, name: str) -> list[int]:
    """What is painted on frames, turned back."""
    if name.startswith("turned"):
        pixels = np.rot90(pixels, {"90": 1, "180": 2, "270": 3}[Path(name).stem.partition("_")[2]], axes=(1, 2))
    return frame_numbers(pixels[:, : SIZE // 2 - 4])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_auto_and_pyav_give_the_frames_that_were_asked_for_with_equal_pixels(kind, folder):
    path = of(kind, folder)
    exact = read_frames(path, 1, backend="pyav")
    every = read_frames(path, exact.num_total, backend="pyav")
    assert numbers(every.pixels, kind.name) == list(range(kind.first, kind.first + every.num_total))
    if kind.name == "truncated.mkv":
        assert 20 < every.num_total < NUM_FRAMES
    elif kind.name == "trimmed.mp4":
        assert every.num_total == TRIMMED_S * RATE
    else:
        assert every.num_total == NUM_FRAMES - kind.first
    backends = ["auto", "pyav"]
    if HAS_TORCHCODEC and torchcodec_backend.refuses(probe(path)) is None:
        backends.append("torchcodec")
    for num_frames in (every.num_total, 13, 5):
        for backend in backends:
            frames = read_frames(path, num_frames, backend=backend)
            assert frames.num_total == every.num_total
            np.testing.assert_array_equal(frames.pixels, every.pixels[frames.indices])
            np.testing.assert_array_equal(frames.times_s, every.times_s[frames.indices])
            if not HAS_TORCHCODEC:
                assert frames.reader == (kind.reader if backend == "auto" else backend)


@pytest.mark.parametrize("kind", DECORD_IS_WRONG, ids=lambda kind: kind.name)
def test_what_auto_keeps_from_decord_it_does_get_wrong(kind, folder):
    """Or the detour would be for nothing: then the kind may go to decord."""
    path = of(kind, folder)
    wrong = False
    for num_frames in (13, 5):
        exact = read_frames(path, num_frames, backend="pyav")
        try:
            frames = read_frames(path, num_frames, backend="decord")
        except VideoDecodeError:
            return
        wrong |= not np.array_equal(frames.pixels, exact.pixels)
    assert wrong


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.by_decord], ids=lambda kind: kind.name)
def test_decord_by_name_gives_the_same_pixels(kind, folder):
    path = of(kind, folder)
    frames = read_frames(path, 13, backend="decord")
    assert frames.reader == "decord"
    np.testing.assert_array_equal(frames.pixels, read_frames(path, 13, backend="pyav").pixels)


def test_a_frame_that_is_not_shown_is_not_counted(folder):
    path = make_hidden(folder / "hidden.webm")
    shown = [number for number in range(NUM_FRAMES) if number != HIDDEN]
    frames = read_frames(path, len(shown))
    assert numbers(frames.pixels, path.name) == shown
    assert "not shown" in decord_backend.refuses(probe(path))
    assert numbers(read_frames(path, 5).pixels, path.name) == [shown[i] for i in read_frames(path, 5).indices]


def test_times_are_those_of_a_variable_rate(folder):
    frames = read_frames(of(next(k for k in KINDS if k.is_vfr), folder), NUM_FRAMES)
    gaps_ms = [40 + number * 37 % 200 for number in range(NUM_FRAMES)]
    np.testing.assert_allclose(frames.times_s, np.cumsum([0, *gaps_ms[:-1]]) / 1000, atol=1e-3)


def test_times_begin_with_the_first_frame_that_is_shown(folder):
    frames = read_frames(of(next(k for k in KINDS if k.name == "transport.ts"), folder), 3)
    assert frames.times_s.tolist() == pytest.approx([0.0, 2.9, 5.9])
    assert frames.duration_s == pytest.approx(6.0)
    window = read_frames(frames.path, 4, start_s=2.0, end_s=4.0)
    assert window.indices[0] == 20 and frame_numbers(window.pixels[:, : SIZE // 2 - 4]) == window.indices.tolist()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open.mp4", "open GOP"),
        ("refresh.mp4", "intra refresh"),
        ("edit_list.mp4", "edit list"),
        ("trimmed.mp4", "edit list"),
        ("transport.ts", "no index"),
        ("truncated.mkv", "before the duration"),
        ("av1.mp4", "codec av1"),
    ],
)
def test_why_decord_is_passed_over(folder, name, words):
    stream = probe(of(next(k for k in KINDS if k.name == name), folder))
    assert words in decord_backend.refuses(stream)


def test_it_says_once_who_reads_and_why(folder, said):
    closed, opened = (of(next(k for k in KINDS if k.name == name), folder) for name in ("closed.mp4", "open.mp4"))
    for _ in range(2):
        read_frames(closed, 2)
        read_frames(opened, 2)
    lines = [record.getMessage() for record in said.records]
    assert len(lines) == len(set(lines))
    assert [line for line in lines if line.startswith("videos: decord reads")] == [
        f"videos: decord reads {closed} and others like it"
    ]
    assert sum("decord passed over" in line and "open GOP" in line for line in lines) == 1
    read_frames(opened, 2, backend="decord")
    assert "decord was asked for, and may not give the right pixels" in said.records[-1].getMessage()
    assert said.records[-1].levelno == logging.WARNING


def test_a_truncated_file_is_read_as_far_as_it_goes_and_said_to_be_one(folder, said):
    read_frames(of(next(k for k in KINDS if k.name == "truncated.mkv"), folder), 2)
    assert any("it ends at" in r.getMessage() and r.levelno == logging.WARNING for r in said.records)


def test_frames_that_decord_cannot_deliver_come_from_another(folder, said):
    path = of(next(k for k in KINDS if k.name == "wide.mp4"), folder)
    assert decord_backend.refuses(probe(path)) is None
    assert read_frames(path, 3).reader != "decord"
    assert any("decord passed over" in r.getMessage() and "cannot be decoded" in r.getMessage() for r in said.records)
    with pytest.raises(VideoDecodeError, match="cannot be decoded"):
        read_frames(path, 3, backend="decord")


def test_decord_is_not_believed_where_its_times_are_others(folder, monkeypatch):
    path = of(next(k for k in KINDS if k.name == "closed.mp4"), folder)
    honest = decord_backend.Reader

    class Late(honest):
        def __init__(self, stream):
            super().__init__(stream)
            self.spans_s = self.spans_s + np.arange(len(self.spans_s))[:, None] * 0.01

    class Few(honest):
        def __init__(self, stream):
            super().__init__(stream)
            self.spans_s = self.spans_s[:-1]

    for reader in (Late, Few):
        monkeypatch.setattr(decord_backend, "Reader", reader)
        frames = read_frames(path, 5)
        assert frames.reader != "decord"
        assert frame_numbers(frames.pixels[:, : SIZE // 2 - 4]) == frames.indices.tolist()


def test_a_jump_that_leads_elsewhere_is_noticed(folder, monkeypatch):
    path = of(next(k for k in KINDS if k.name == "closed.mp4"), folder)
    frames_of = pyav.Reader._frames
    lost = []

    def elsewhere(self, container, track, key):
        if key is not None:
            container.seek(int(self.stream.pts[-1]), stream=track)
        try:
            yield from frames_of(self, container, track, key)
        except pyav._LostError:
            lost.append(key)
            raise

    monkeypatch.setattr(pyav.Reader, "_frames", elsewhere)
    frames = read_frames(path, 5, backend="pyav")
    assert lost
    assert frame_numbers(frames.pixels[:, : SIZE // 2 - 4]) == frames.indices.tolist()


def test_a_backend_that_is_named_runs_or_raises(video, monkeypatch):
    assert read_frames(video, 2, backend="pyav").reader == "pyav"
    monkeypatch.setenv("BIMBA_VIDEO_BACKEND", "pyav")
    assert read_frames(video, 2).reader == "pyav"
    assert read_frames(video, 2, backend="decord").reader == "decord"
    monkeypatch.setenv("BIMBA_VIDEO_BACKEND", "opencv")
    with pytest.raises(BimbaError, match="'opencv'; expected one of auto, decord, torchcodec, pyav"):
        read_frames(video, 2)
    monkeypatch.setattr(torchcodec_backend, "unavailable", lambda: "it is not installed")
    with pytest.raises(BimbaError, match="'torchcodec' was asked for and cannot run: it is not installed"):
        read_frames(video, 2, backend="torchcodec")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("10bit.mp4", "colours of 10 bits otherwise"),
        ("hevc_10bit.mp4", "colours of 10 bits otherwise"),
        ("transport.ts", "only decoding tells"),
        ("refresh.mp4", "intra refresh"),
    ],
)
def test_torchcodec_never_gives_other_pixels_than_the_others(folder, name, why, said, monkeypatch):
    """Where it is installed or not: it is not asked."""
    path = of(next(k for k in KINDS if k.name == name), folder)
    monkeypatch.setattr(torchcodec_backend, "unavailable", lambda: None)
    with pytest.raises(VideoDecodeError, match=f"torchcodec was asked for(?s:.*){why}(?s:.*)video_backend=auto"):
        read_frames(path, 3, backend="torchcodec")
    monkeypatch.setattr(decord_backend, "unavailable", lambda: "it is not installed")
    assert read_frames(path, 3).reader == "pyav"
    (line,) = [r.getMessage() for r in said.records if "torchcodec passed over" in r.getMessage()]
    assert why in line


def test_torchcodec_says_why_it_is_not_there():
    if find_spec("torchcodec") is None:
        assert "pip install" in torchcodec_backend.unavailable()
    else:
        assert HAS_TORCHCODEC or "FFmpeg" in torchcodec_backend.unavailable()


def test_decord2_is_refused(video, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "3.4.0")
    decord_backend.unavailable.cache_clear()
    try:
        with pytest.raises(BimbaError, match="decord2 is installed, which returns wrong frames.*pip uninstall decord2"):
            read_frames(video, 2, backend="decord")
        assert read_frames(video, 2).reader != "decord"
    finally:
        monkeypatch.undo()
        decord_backend.unavailable.cache_clear()
    assert read_frames(video, 2).reader == "decord"


def test_frames_that_do_not_fit_into_memory_are_refused(video, monkeypatch):
    monkeypatch.setattr(video_module.os, "sysconf", lambda name: 1000)
    with pytest.raises(VideoDecodeError, match=r"96 frames of 64 x 64 take 0\.0 GB.*Ask for fewer frames"):
        read_frames(video, 96)


def test_a_damaged_frame_is_an_error_and_not_a_picture(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 64, 3), dtype=np.uint8)
    data = bytearray(write_video(tmp_path / "noise.mp4", noise).read_bytes())
    data[len(data) // 3 : len(data) // 3 + 4000] = bytes(4000)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    with pytest.raises(VideoDecodeError, match="h264 video track cannot be decoded"):
        read_frames(path, 48, backend="pyav")


def test_a_video_can_be_looked_at_without_reading_it(video, tmp_path):
    check_video(video)
    with pytest.raises(VideoDecodeError, match="no such file"):
        check_video(tmp_path / "missing.mp4")
    (tmp_path / "words.mp4").write_bytes(b"words " * 100)
    with pytest.raises(VideoDecodeError, match="not a media file"):
        check_video(str(tmp_path / "words.mp4"))


def test_every_backend_reads_a_short_video(tmp_path):
    path = write_video(tmp_path / "one.mp4", numbered_frames(1))
    for backend in ("auto", "decord", "pyav"):
        assert read_frames(path, 3, short_videos="repeat", backend=backend).indices.tolist() == [0, 0, 0]
