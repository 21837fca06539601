from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pytest

from bimba.data import needle_files
from bimba.data.needle import TASKS, digit_bank, render_clip
from bimba.data.needle_files import EQUAL_TASKS, generate, generate_splits, plan
from bimba.data.video import read_frames
from bimba.types import BimbaError
from tests.data.files import TINY_CLIP

NUM_CLIPS = 12


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def write(root: Path, **changes) -> Path:
    options = {"split": "train", "num_clips": NUM_CLIPS, "config": TINY_CLIP, "seed": 3, "workers": 1, **changes}
    return generate(root, **options)


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("complete")
    write(root)
    return root


def test_what_is_written(complete):
    rows = json.loads((complete / "train" / "annotations.json").read_text())
    assert len(rows) == NUM_CLIPS
    names = {f"train/videos/{i:06d}.mp4" for i in range(NUM_CLIPS)}
    assert set(contents(complete)) == names | {"train/annotations.json", "train/config.json"}
    for i, row in enumerate(rows):
        assert row["id"] == f"needle_train_{i:06d}"
        assert row["data_source"] == "needle"
        assert row["task"] in TASKS
        assert row["options"]["ABCD".index(row["answer"])] == row["answer_text"]
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"]
        assert row["conversations"][0]["value"].startswith("<image>\n")
        assert row["question"] in row["conversations"][0]["value"]
        assert row["conversations"][1]["value"] == row["answer"]


def test_the_videos_are_the_rendered_clips(complete):
    """Every frame where it was, and the needle's pixels close to what was drawn."""
    rows = json.loads((complete / "train" / "annotations.json").read_text())
    for clip, row in zip(plan(NUM_CLIPS, EQUAL_TASKS, 0.0, 3, "train"), rows, strict=True):
        rng = np.random.default_rng([3, 0, clip.index])
        rendered = render_clip(TINY_CLIP, rng, digit_bank("train"), clip.task, letter=clip.letter)
        frames = read_frames(complete / "train" / row["video"], TINY_CLIP.num_video_frames)
        assert rendered.needles == row["needles"]
        assert frames.duration_s == pytest.approx(TINY_CLIP.num_video_frames / TINY_CLIP.fps)
        assert frames.pixels.shape == rendered.frames.shape
        assert np.abs(frames.pixels.astype(int) - rendered.frames).mean() < 8


def test_h264_with_closed_short_gops(complete):
    with av.open(str(complete / "train" / "videos" / "000000.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == TINY_CLIP.fps
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 8, 16]
        assert [packet.pts for packet in packets] == sorted(packet.pts for packet in packets)  # no frame refers ahead


def test_same_seed_same_bytes_in_any_number_of_processes(complete, tmp_path):
    write(tmp_path, workers=2)
    assert contents(tmp_path) == contents(complete)


def test_other_seed_and_split_give_other_clips(complete, tmp_path):
    write(tmp_path / "seed", num_clips=2, seed=4)
    write(tmp_path / "split", num_clips=2, split="test")
    first = (complete / "train" / "videos" / "000000.mp4").read_bytes()
    assert (tmp_path / "seed" / "train" / "videos" / "000000.mp4").read_bytes() != first
    assert (tmp_path / "split" / "test" / "videos" / "000000.mp4").read_bytes() != first


def test_train_and_test_share_no_digit_image():
    train, test = ({image.tobytes() for images in digit_bank(s).images for image in images} for s in ("train", "test"))
    assert train
    assert test
    assert not train & test


def test_generate_splits(tmp_path):
    generate_splits(tmp_path, {"train": 2, "test": 1}, config=TINY_CLIP, workers=1)
    assert len(json.loads((tmp_path / "train" / "annotations.json").read_text())) == 2
    assert len(json.loads((tmp_path / "test" / "annotations.json").read_text())) == 1


@pytest.mark.parametrize("open_ended", [0.0, 0.25])
def test_plan_is_balanced(open_ended):
    clips = plan(1200, EQUAL_TASKS, open_ended, 0, "train")
    assert Counter(clip.task for clip in clips) == dict.fromkeys(TASKS, 400)
    assert set(Counter((clip.task, clip.letter) for clip in clips).values()) == {100}
    closed = Counter((clip.task, clip.letter) for clip in clips if clip.form == "multiple_choice")
    assert set(closed.values()) <= ({100} if open_ended == 0 else {74, 75, 76})
    assert [clip.index for clip in clips] == list(range(1200))
    letters = [clip.letter for clip in clips]
    assert letters != sorted(letters)
    assert letters[:8] != list("ABCDABCD")
    assert plan(1200, EQUAL_TASKS, open_ended, 0, "train") == clips
    assert plan(1200, EQUAL_TASKS, open_ended, 1, "train") != clips
    assert plan(1200, EQUAL_TASKS, open_ended, 0, "test") != clips


def test_plan_follows_task_weights():
    clips = plan(10, {"counting": 1, "retrieval": 3}, 1.0, 0, "train")
    assert Counter(clip.task for clip in clips) == {"retrieval": 8, "counting": 2}  # 7.5 rounded
    assert {clip.form for clip in clips} == {"open_ended"}
    assert plan(10, {"retrieval": 3, "counting": 1}, 1.0, 0, "train") == clips  # the order of the keys means nothing


def test_open_ended_rows_keep_their_options(tmp_path):
    rows = json.loads(write(tmp_path, num_clips=2, open_ended=1.0).read_text())
    for row in rows:
        assert row["conversations"][1]["value"] == row["answer_text"]
        assert len(row["options"]) == 4
        assert row["answer"] in "ABCD"


def test_complete_data_is_left_alone(complete, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(needle_files, "make_clip", fail)
    assert write(complete) == complete / "train" / "annotations.json"


def test_missing_files_are_written_again(complete, tmp_path, monkeypatch):
    write(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "train" / "annotations.json").unlink()
    (tmp_path / "train" / "videos" / "000005.mp4").unlink()
    written: list[str] = []
    original = needle_files._write
    monkeypatch.setattr(needle_files, "_write", lambda p, d: (written.append(p.name), original(p, d)))
    write(tmp_path)
    assert contents(tmp_path) == before == contents(complete)
    assert written == ["config.json", "000005.mp4", "annotations.json"]


CHILD = """
import os, signal, sys
from bimba.data.needle import NeedleConfig
from bimba.data.needle_files import generate

def main(how, root):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit "ignore"
    replace, calls = os.replace, []
    def dies_at_the_sixth_file(source, target):
        calls.append(target)
        if len(calls) == 6:
            os.kill(os.getpid(), getattr(signal, how))
        replace(source, target)
    os.replace = dies_at_the_sixth_file
    generate(root, "train", {num_clips}, {config}, seed=3, workers=2)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def test_interrupted_in_the_middle_of_a_write_and_resumed(complete, tmp_path, monkeypatch):
    def interrupted(source: Path, target: Path) -> None:
        if target.name == "000004.mp4":
            raise KeyboardInterrupt
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    monkeypatch.undo()
    assert set(contents(tmp_path)) == {"train/config.json", *(f"train/videos/{i:06d}.mp4" for i in range(4))}
    write(tmp_path)
    assert contents(tmp_path) == contents(complete)


@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_killed_with_its_processes_and_resumed(how, complete, tmp_path):
    script, root = tmp_path / "child.py", tmp_path / "root"
    script.write_text(CHILD.replace("{num_clips}", str(NUM_CLIPS)).replace("{config}", repr(TINY_CLIP)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # The pipes close when the last process that holds them is gone: no worker outlives the one that was killed.
    child = subprocess.run(
        [sys.executable, str(script), how, str(root)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert child.returncode == -getattr(signal, how), child.stderr
    whole, left = contents(complete), contents(root)
    partial = {name for name in left if name.endswith(".part")}
    assert "train/annotations.json" not in left
    assert 4 <= len(left) - len(partial) <= 6  # config.json and the first videos
    assert all(whole[name] == left[name] for name in left if name not in partial)
    if how == "SIGINT":
        assert not partial
    write(root)
    assert contents(root) == whole


def test_failure_while_writing_leaves_no_half_file(tmp_path, monkeypatch):
    def full(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 9}, "seed is 3, asked for 9"),
        ({"num_clips": 20}, "num_clips is 12, asked for 20"),
        ({"config": replace(TINY_CLIP, needle_px=16)}, "config.needle_px is 8, asked for 16"),
        ({"tasks": {"retrieval": 1}}, "tasks.counting is 1.0, asked for None"),
        ({"open_ended": 0.5}, "open_ended is 0.0, asked for 0.5"),
    ],
)
def test_other_parameters_are_refused(complete, changes, named):
    before = contents(complete)
    with pytest.raises(BimbaError, match=named) as caught:
        write(complete, **changes)
    assert str(complete / "train") in str(caught.value)
    assert "another root" in str(caught.value)
    if len(changes) == 1 and "tasks" not in changes:
        assert str(caught.value).count("asked for") == 1  # and nothing else is named
    assert contents(complete) == before


def test_lists_from_a_configuration_are_the_same_parameters(complete):
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(TINY_CLIP).items()}
    write(complete, config=type(TINY_CLIP)(**listed), tasks={"counting": 1, "ordering": 1, "retrieval": 1})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "annotations.json").write_text("[]")
    with pytest.raises(BimbaError, match=r"train: has annotations.json but no config.json.*another root"):
        write(tmp_path)
    (tmp_path / "train" / "config.json").write_text("{")
    with pytest.raises(BimbaError, match=r"config.json: not valid JSON"):
        write(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "validation"}, "'validation'; expected 'train' or 'test'"),
        ({"num_clips": 0}, "num_clips=0"),
        ({"tasks": {"reading": 1}}, "reading.*retrieval, ordering, counting"),
        ({"tasks": {}}, "tasks={}"),
        ({"tasks": {"retrieval": 0}}, "weights of at least 0"),
        ({"tasks": {"retrieval": 2, "counting": -1}}, "weights of at least 0"),
        ({"open_ended": 1.5}, "open_ended=1.5"),
        ({"workers": 0}, "workers=0"),
        ({"config": replace(TINY_CLIP, size=33)}, "size=33.*even"),
        ({"config": replace(TINY_CLIP, num_video_frames=2), "tasks": {"ordering": 1}}, "do not fit"),
    ],
)
def test_bad_arguments(tmp_path, changes, message):
    with pytest.raises(BimbaError, match=message):
        write(tmp_path, **changes)


def test_a_split_may_have_clips_of_its_own(tmp_path):
    clip = replace(TINY_CLIP, needle_frames=(3, 3))
    generate_splits(tmp_path, {"train": 1, "test": 1}, clip, own={"test": {"needle_frames": [2, 2]}}, workers=1)
    for split, length in (("train", 3), ("test", 2)):
        rows = json.loads((tmp_path / split / "annotations.json").read_text())
        assert {needle["length"] for row in rows for needle in row["needles"]} == {length}
    with pytest.raises(BimbaError, match="own has val; expected some of the splits train"):
        generate_splits(tmp_path, {"train": 1}, TINY_CLIP, own={"val": {}})
    with pytest.raises(BimbaError, match=r"own\.train has colour; expected some of num_video_frames"):
        generate_splits(tmp_path, {"train": 1}, TINY_CLIP, own={"train": {"colour": 1}})
