"""A decoder that crashes or hangs costs its video; the run goes on, and nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bimba.data import isolated
from bimba.data.datamodule import VideoQADataModule
from bimba.data.dataset import VideoQADataset
from bimba.data.isolated import read_frames
from bimba.data.video import read_frames as read_here
from bimba.types import BadSample, BimbaError, ShortVideoError, VideoDecodeError
from tests.data.accidents import decode_or_worse
from tests.data.files import frame_numbers, numbered_frames, write_video

ROOT = Path(__file__).parents[2]


@pytest.fixture
def accidents(monkeypatch):
    """Decoding processes do what the names of the files say."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    _end_all()  # they would not find the tests
    monkeypatch.setattr(isolated, "decode", decode_or_worse)
    yield
    _end_all()


def _end_all() -> None:
    while isolated._free:
        isolated._free.pop().end()


def is_gone(pid: int, within_s: float = 30.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if (
            Path(f"/proc/{pid}/stat").exists()
            and Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] == "Z"
        ):
            return True  # not our child: whoever adopted it has not looked yet
        time.sleep(0.02)
    return False


def test_the_frames_are_those_of_decoding_here(video):
    there, here = read_frames(video, 7, 2.0, 9.0), read_here(video, 7, 2.0, 9.0)
    np.testing.assert_array_equal(there.pixels, here.pixels)
    np.testing.assert_array_equal(there.times_s, here.times_s)
    np.testing.assert_array_equal(there.indices, here.indices)
    assert (there.duration_s, there.num_total, there.average_fps, there.path, there.reader) == (
        (here.duration_s, here.num_total, here.average_fps, here.path, here.reader)
    )
    there.pixels[0, 0, 0] = 7  # they are the caller's to change


def test_one_process_serves_one_video_after_the_other(video):
    read_frames(video, 2)
    (before,) = isolated._free[-1:]
    first = read_frames(video, 2)
    second = read_frames(video, 3)
    assert isolated._free[-1] is before
    assert frame_numbers(first.pixels) == first.indices.tolist()  # the second's are not in their place
    assert frame_numbers(second.pixels) == second.indices.tolist()


def test_a_path_starts_in_the_folder_of_now(video, tmp_path, monkeypatch):
    read_frames(video, 1)
    monkeypatch.chdir(video.parent)
    assert read_frames(video.name, 2).path == video.name  # by the process of before
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert len(read_frames(video, 2).pixels) == 2
    with pytest.raises(VideoDecodeError):
        read_frames(video.name, 2)  # there is one of this name where the process was before


def test_pixels_are_written_over_only_when_nobody_has_them(video, make_video):
    larger = make_video(40, "large.mp4")
    kept = [(n, read_frames(video, n)) for n in (2, 7, 3)]  # each of them still read when the next is decoded
    view = read_frames(larger, 30).pixels[3:5, ::2]  # of what it was cut from nobody knows any more
    for _ in range(3):
        for path, n in ((larger, 40), (video, 2), (larger, 12)):  # freed at once: the same memory, more and less of it
            frames = read_frames(path, n)
            assert frame_numbers(frames.pixels) == frames.indices.tolist()
            del frames
    assert [frame_numbers(frames.pixels) for _, frames in kept] == [frames.indices.tolist() for _, frames in kept]
    assert frame_numbers(view) == read_here(larger, 30).indices[3:5].tolist()


def test_errors_are_those_of_decoding_here(video, make_video, tmp_path):
    with pytest.raises(ShortVideoError, match="3 frames, and 8 were asked for"):
        read_frames(make_video(3), 8)
    with pytest.raises(VideoDecodeError, match="no such file"):
        read_frames(tmp_path / "missing.mp4", 8)
    with pytest.raises(BimbaError, match=r"lasts 12\.00 s"):
        read_frames(video, 2, start_s=99.0)
    with pytest.raises(BimbaError, match="video backend is 'opencv'"):
        read_frames(video, 2, backend="opencv")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("crash", r"crash\.mp4: the decoder died of signal 11 \(SIGSEGV\)"),
        ("hang", r"hang\.mp4: the decoder took longer than 0\.5 s"),
        ("stall", r"stall\.mp4: the decoder took longer than 0\.5 s"),
        ("exit", r"exit\.mp4: the decoder ended with exit code 3"),
    ],
)
def test_what_befalls_the_decoder_is_the_videos_error(name, words, video, accidents):
    read_frames(video, 2, deadline_s=60)
    (process,) = isolated._free
    with pytest.raises(VideoDecodeError, match=words):
        read_frames(video.with_name(f"{name}.mp4"), 2, deadline_s=0.5 if name in ("hang", "stall") else 60)
    assert isolated._free == []
    with pytest.raises(ChildProcessError):  # no zombie
        os.waitpid(process._process.pid, os.WNOHANG)
    assert frame_numbers(read_frames(video, 2, deadline_s=60).pixels) == [0, 95]


@pytest.mark.parametrize(("name", "words"), [("full", "MemoryError: full"), ("odd", "Odd: 1 and 2")])
def test_whatever_the_decoder_raises_is_the_videos_error(name, words, video, accidents):
    with pytest.raises(VideoDecodeError, match=rf"^{name}\.mp4: the decoder failed \({words}\)"):
        read_frames(f"{name}.mp4", 2)
    (process,) = isolated._free  # still there
    assert frame_numbers(read_frames(video, 2).pixels) == [0, 95]
    assert isolated._free == [process]


@pytest.mark.parametrize("fails", ["os.pipe", "subprocess.Popen"])
def test_a_process_that_cannot_be_started(fails, video, monkeypatch):
    def refused(*arguments, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    _end_all()
    opened = len(os.listdir("/dev/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(fails, refused)
        with pytest.raises(BimbaError, match=r"could be started: Too many open files.*BIMBA_ISOLATE_DECODING=0") as it:
            read_frames(video, 2)
    assert not isinstance(it.value, VideoDecodeError)  # the video is not to blame
    assert len(os.listdir("/dev/fd")) == opened
    assert frame_numbers(read_frames(video, 2).pixels) == [0, 95]


def test_a_process_that_died_while_it_waited_is_replaced(video):
    read_frames(video, 2)
    pid = isolated._free[-1]._process.pid
    os.kill(pid, signal.SIGKILL)
    assert is_gone(pid)
    assert frame_numbers(read_frames(video, 2).pixels) == [0, 95]


def test_signals_for_the_job_are_not_the_decoders(video):
    read_frames(video, 2)
    process = isolated._free[-1]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(process._process.pid, number)
    read_frames(video, 2)
    assert isolated._free[-1] is process


def test_threads_have_processes_of_their_own(make_video):
    paths = [make_video(n, f"{n}.mp4") for n in range(20, 28)]
    barrier = threading.Barrier(4)

    def read(path):
        barrier.wait(60)
        return frame_numbers(read_frames(path, 5).pixels)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, paths))
    assert found == [frame_numbers(read_here(path, 5).pixels) for path in paths]
    # the threads are gone, the processes are not
    assert len([p for p in isolated._free if p.is_alive()]) >= 2


@pytest.mark.parametrize("parent", ["parent_of_an_idle_decoder", "parent_of_a_busy_decoder"])
def test_processes_end_with_their_parent_however_it_ends(parent, video, tmp_path):
    ready = tmp_path / "ready"
    code = f"from tests.data import accidents; accidents.{parent}({str(ready)!r}, {str(video)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        while not (ready.exists() and ready.read_text()):
            assert process.poll() is None
            time.sleep(0.02)
        child = int(ready.read_text())
        os.kill(child, 0)
    finally:
        process.kill()
        process.wait()
    assert is_gone(child)


def test_a_forked_process_keeps_nobody_alive_and_reads_with_its_own(video):
    read_frames(video, 2)
    mine = {process._process.pid for process in isolated._free}
    dataset = _Reads(video)
    (found,) = DataLoader(dataset, num_workers=1, multiprocessing_context="fork", batch_size=None)
    pid, numbers = found
    assert numbers == [0, 95]
    assert pid not in mine
    assert is_gone(pid)  # a worker is a daemon, ended by a signal
    assert frame_numbers(read_frames(video, 2).pixels) == [0, 95]  # mine are still mine


class _Reads(torch.utils.data.Dataset):
    def __init__(self, path: Path):
        self.path = path

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[int, list[int]]:
        assert not isolated._free
        frames = read_frames(self.path, 2)
        return isolated._free[0]._process.pid, frame_numbers(frames.pixels)


def test_a_training_run_goes_on(tmp_path, processor, accidents, monkeypatch):
    names = ["good_0", "crash_0", "good_1", "hang_0", "good_2", "text"]
    rows = []
    for name in names:
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(b"words, words, words") if name == "text" else write_video(path, numbered_frames(16))
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
        rows.append({"id": name, "video": path.name, "conversations": turns})
    annotations = tmp_path / "rows.json"
    annotations.write_text(json.dumps(rows))
    monkeypatch.setenv("BIMBA_DECODE_DEADLINE_S", "10")
    dataset = VideoQADataset(annotations, tmp_path, processor, num_frames=4, max_length=500)
    samples = list(DataLoader(dataset, num_workers=1, batch_size=None))
    assert [isinstance(sample, BadSample) for sample in samples] == [False, True, False, True, False, True]
    assert "died of signal 11" in samples[1].error
    assert "took longer than 10 s" in samples[3].error
    assert "not a media file" in samples[5].error


def test_pixels_that_a_forked_process_has_are_not_written_over(video, make_video):
    frames = read_frames(make_video(40, "other.mp4"), 40)
    expected = frame_numbers(frames.pixels)
    (ready, said), (done, say) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.close(said)  # of which the end is what it waits for
        os.read(ready, 1)
        os.write(say, b"1" if frame_numbers(frames.pixels) == expected else b"0")
        os._exit(0)
    os.close(ready)
    os.close(say)
    del frames  # here, nobody has them any more
    numbers = frame_numbers(read_frames(video, 40).pixels)
    os.close(said)
    assert os.read(done, 1) == b"1"
    os.close(done)
    assert os.waitpid(child, 0)[1] == 0
    assert numbers != expected  # so they would have been others


def test_a_process_that_cannot_be_ended_is_abandoned(video, monkeypatch):
    def busy(timeout=None):
        assert timeout is not None
        raise subprocess.TimeoutExpired("decoder", timeout)

    read_frames(video, 2)
    process = isolated._free.pop()
    with monkeypatch.context() as patched:
        patched.setattr(process._process, "wait", busy)
        process.end()
    process._process.wait(60)  # it was killed


def test_it_can_be_switched_off(video, monkeypatch):
    monkeypatch.setenv("BIMBA_ISOLATE_DECODING", "0")
    monkeypatch.setattr(isolated, "call", lambda *a, **k: pytest.fail("isolated"))
    assert frame_numbers(read_frames(video, 2).pixels) == [0, 95]


def test_settings_hold_for_this_process_and_those_it_starts(video, monkeypatch, processor, tmp_path):
    for variable in (isolated.BACKEND, isolated.DEADLINE, isolated.ISOLATE):
        monkeypatch.setenv(variable, "")  # undone after the test, whatever it becomes
    monkeypatch.delenv(isolated.ISOLATE)
    VideoQADataModule("rows.json", "films", processor, 4, 500, 1, 1)
    assert os.environ[isolated.BACKEND] == os.environ[isolated.DEADLINE] == ""
    VideoQADataModule(
        *("rows.json", "films", processor, 4, 500, 1, 1),
        video_backend="pyav",
        decode_deadline_s=7,
        isolate_decoding=False,
    )
    assert [os.environ[name] for name in (isolated.BACKEND, isolated.DEADLINE, isolated.ISOLATE)] == ["pyav", "7", "0"]
    assert read_frames(video, 2).reader == "pyav"
    with pytest.raises(BimbaError, match="video backend is 'opencv'"):
        isolated.read_videos_with("opencv")
    with pytest.raises(BimbaError, match="may take -1 seconds"):
        isolated.read_videos_with(deadline_s=-1)


@pytest.mark.parametrize("stated", ["soon", "-1", "nan"])
def test_a_deadline_is_a_number_of_seconds(stated, video, monkeypatch):
    monkeypatch.setenv("BIMBA_DECODE_DEADLINE_S", stated)
    with pytest.raises(BimbaError, match=f"may take '{stated}' seconds.*BIMBA_DECODE_DEADLINE_S"):
        read_frames(video, 2)


def test_no_deadline(video):
    assert frame_numbers(read_frames(video, 2, deadline_s=0).pixels) == [0, 95]


def test_the_child_imports_no_torch():
    code = "import sys, bimba.data.isolated_child, bimba.data.video; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
