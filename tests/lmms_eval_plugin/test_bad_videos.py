"""Every kind of bad video in one evaluation: it costs its own questions, is reported and counted, and never the run."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import av
import pytest
from tiny_checkpoint import NUM_FRAMES, write_video

from bimba.data import isolated
from bimba.data.prompt import LETTERS
from tests.data.accidents import decode_or_worse

REPOSITORY = Path(__file__).resolve().parents[2]
TASK = "bimba_needle_retrieval"
UNREADABLE = {  # file -> why
    "zero_bytes.mp4": r"an empty file \(0 bytes\)",
    "zero_frames.mp4": "no frames|no video track|not a media file",
    "unknown_codec.mp4": "unknown codec|cannot be decoded",
    "truncated.mp4": "truncated",
    "crash.mp4": "the decoder died of signal 11",
    "hang.mp4": "the decoder took longer than 10 s",
}
SHORT = {"one_frame.mp4": 1, "short.mp4": NUM_FRAMES - 1}
GOOD = ["good_0.mp4", "good_1.mp4"]


def write_videos(folder: Path) -> None:
    for name, num_frames in {**dict.fromkeys([*GOOD, "crash.mp4", "hang.mp4"], 12), **SHORT}.items():
        write_video(folder / name, num_frames=num_frames, seed=len(name))
    whole = (folder / GOOD[0]).read_bytes()
    (folder / "zero_bytes.mp4").write_bytes(b"")
    (folder / "unknown_codec.mp4").write_bytes(whole.replace(b"avc1", b"zzzz"))
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    with av.open(str(folder / "zero_frames.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        file.start_encoding()


@pytest.fixture
def needles(tmp_path, monkeypatch) -> list[str]:
    """A needle test split with two questions about every video, the videos alternating."""
    names = [*UNREADABLE, *SHORT, *GOOD]
    folder = tmp_path / "needle" / "test"
    write_videos(folder / "videos")
    rows = [
        {
            **{"id": f"retrieval-{i}", "video": f"videos/{name}", "conversations": [], "data_source": "needle"},
            **{"task": "retrieval", "question": f"Question {i}?", "options": ["1", "2", "3", "4"]},
            **{"answer": LETTERS[i % 4], "answer_text": str(i % 4 + 1)},
        }
        for i, name in enumerate(2 * names)
    ]
    (folder / "annotations.json").write_text(json.dumps(rows))
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(tmp_path / "needle"))
    return 2 * names


@pytest.mark.parametrize("short_videos", ["repeat", "error"])
def test_bad_videos_cost_their_own_questions(short_videos, needles, checkpoint, tmp_path, monkeypatch):
    while isolated._free:
        isolated._free.pop().end()  # they would not find the tests
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("BIMBA_DECODE_DEADLINE_S", "10")
    monkeypatch.setattr(isolated, "decode", decode_or_worse)
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), *sys.path])
    monkeypatch.setenv("BIMBA_ROOT", str(REPOSITORY))
    out = tmp_path / "out"
    options = [f"output_dir={out}", "device=cpu", f"checkpoint={checkpoint}", f"short_videos={short_videos}"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *options, f"benchmark.tasks=[{TASK}]"])
    runpy.run_path(str(REPOSITORY / "evaluate.py"), run_name="__main__")

    summary = json.loads((out / "summary.json").read_text())
    found = {Path(path).name: error for path, error in summary["unreadable_videos"].items()}
    expected = {**UNREADABLE, **({name: "were asked for" for name in SHORT} if short_videos == "error" else {})}
    assert set(found) == set(expected)
    for name, why in expected.items():
        assert re.search(why, found[name]), found[name]
    assert summary["complete"] is False
    assert summary["short_videos"] == {"handled": short_videos, "repeated": 0 if short_videos == "error" else 2}
    assert summary["tasks"][TASK]["n"] == len(needles)
    samples = json.loads((out / "samples" / f"{TASK}.json").read_text())["samples"]
    silent = [sample["filtered_resps"] == [""] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
    assert silent == [name in expected for name in needles]
    right = sum(sample["accuracy"] for sample in samples)
    assert right <= sum(name not in expected for name in needles)
