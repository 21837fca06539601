"""``evaluate.py`` in several processes: one result, one report, and what any of them could not read."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoint import write_needles, write_video

from bimba.types import BimbaError
from lmms_eval_plugin import ranks

REPOSITORY = Path(__file__).resolve().parents[2]


def settings(output: Path) -> list[str]:
    return ["benchmark=needle", "device=cpu", "num_frames=4", f"output_dir={output}"]


def summary(output: Path) -> dict:
    return json.loads((output / "summary.json").read_text())


@pytest.fixture(scope="module")
def needles(tmp_path_factory) -> Path:
    """Two films, one of them short, and one that is broken, each with questions."""
    root = write_needles(tmp_path_factory.mktemp("needle"))
    videos = root / "test/videos"
    write_video(videos / "b.mp4", num_frames=3)
    (videos / "c.mp4").write_bytes((videos / "a.mp4").read_bytes()[:100])
    annotations = json.loads((root / "test/annotations.json").read_text())
    annotations += [{**one, "id": f"{one['id']}-c", "video": "videos/c.mp4"} for one in annotations[:3]]
    (root / "test/annotations.json").write_text(json.dumps(annotations))
    return root


def test_two_processes_find_what_one_finds(needles, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), *sys.path])
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *settings(tmp_path / "1")])
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(needles))
    runpy.run_path(str(REPOSITORY / "evaluate.py"), run_name="__main__")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "evaluate.py", *settings(tmp_path / "2")],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = summary(tmp_path / "1"), summary(tmp_path / "2")
    for key in ("tasks", "measures", "frames", "complete", "unreadable_videos", "short_videos", "failed_tasks"):
        assert json.dumps(one[key]) == json.dumps(two[key]), key  # in the same order, too
    for path in (tmp_path / "1/samples").iterdir():
        answered = [
            [(row["doc_id"], row["filtered_resps"]) for row in json.loads(file.read_text())["samples"]]
            for file in (path, tmp_path / "2/samples" / path.name)
        ]
        assert answered[0] == answered[1]
    assert not two["complete"]
    assert [Path(video).name for video in two["unreadable_videos"]] == ["c.mp4"]
    assert two["short_videos"]["repeated"] == 1
    counts = ("decoded", "answered", "resumed")
    assert [one["throughput"][name] for name in counts] == [two["throughput"][name] for name in counts]
    assert (one["throughput"]["processes"], two["throughput"]["processes"]) == (1, 2)
    owners = {
        (path.name, json.loads(line)["video"])
        for path in (tmp_path / "2/journal").glob("journal-*.jsonl")
        for line in path.read_text().splitlines()
    }
    assert sorted(video for _, video in owners) == ["a.mp4", "b.mp4"]  # each read by one process
    for name in ("report.html", "report.md"):
        assert "INCOMPLETE: 1 videos" in (tmp_path / "2" / name).read_text()
    assert done.stdout.count("┃ Task ") == 1
    assert "INCOMPLETE" in done.stdout + done.stderr


def test_what_the_first_process_cannot_do_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")

    def refuse():
        raise BimbaError("It is taken.")

    with pytest.raises(BimbaError, match="It is taken"):
        ranks.first_does(refuse)


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ranks.join("cpu") == 0
    assert ranks.as_first_says("folder") == "folder"
    assert ranks.first_does(lambda: "done") == "done"
