"""``bimba prepare`` on what is complete, and on what is missing or broken: it is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from homes import ON_HUB, POINTER, tree

from lmms_eval_plugin.prepare.sources import ALL, SOURCES, table_of


def test_everything_there_is_ready_without_a_trace(home, prepare):
    before = tree(home)
    code, printed, items = prepare("all", "--dry-run")
    assert code == 0
    assert list(items) == list(ALL)
    assert printed.count(": ready") == 7
    assert items["mlvu"]["questions"] == (True, "7", "")
    assert tree(home) == before


@pytest.mark.parametrize("name", SOURCES)
def test_a_missing_video_is_named(home, prepare, name):
    (video, *_) = sorted((home / (table_of(SOURCES[name]).folder if name in ON_HUB else "vnbench")).rglob("*.mp4"))
    video.unlink()
    code, printed, items = prepare(name, "--offline")
    assert code == 1
    ok, state, todo = items[name]["videos"]
    assert not ok
    assert state.startswith("1 of 2 in ")
    assert f"1 missing: {video.relative_to(home)}".split("/")[-1] in state
    assert ("without --offline to download" if name in ON_HUB else "VideoNIAH project serves them") in todo
    assert f"{name}: not ready" in printed


def test_however_many_are_missing_json_names_all(home, prepare, tmp_path):
    shutil.rmtree(home / "vnbench")
    row = {"question": "Which?", "options": ["a", "b"], "gt": "a", "type": "cnt_edit1", "try": 0}
    rows = [{**row, "video": f"/VNBench_new/cnt_edit1_{i}.mp4"} for i in range(12)]
    (home / "vnbench").mkdir()
    (home / "vnbench/VNBench-main-4try.json").write_text(json.dumps(rows))
    code, _, items = prepare("vnbench", "--offline")
    assert code == 1
    assert items["vnbench"]["videos"][1].endswith("cnt_edit1_4.mp4 and 7 more (--json names all)")
    (videos,) = [
        item
        for item in json.loads((tmp_path / "findings.json").read_text())["vnbench"]["items"]
        if item["what"] == "videos"
    ]
    assert videos["names"] == [row["video"].lstrip("/") for row in rows]


@pytest.mark.parametrize(("content", "why"), [("", "empty"), (POINTER, "a Git LFS pointer")])
def test_a_file_that_is_no_video_yet_is_named(home, prepare, content, why):
    (home / "videomme/data/film1.mp4").write_text(content)
    code, _, items = prepare("videomme", "--offline")
    assert (code, items["videomme"]["videos"][0]) == (1, False)
    assert f"1 broken: data/film1.mp4 ({why})" in items["videomme"]["videos"][1]


def test_a_video_that_may_not_be_read_is_named(home, prepare, monkeypatch):
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "film1.mp4" and access(path, mode))
    code, _, items = prepare("videomme", "--offline")
    assert code == 1
    assert "1 broken: data/film1.mp4 (not readable: see its permissions)" in items["videomme"]["videos"][1]


def test_probing_opens_every_video(home, prepare):
    (home / "mlvu/0_film.mp4").write_bytes(b"not a film" * 200)
    assert prepare("mlvu", "--offline")[0] == 0
    code, _, items = prepare("mlvu", "--offline", "--probe")
    assert code == 1
    ok, state, _ = items["mlvu"]["probe"]
    assert not ok
    assert state.startswith("1 of 2 can be opened\n")
    assert "mlvu/0_film.mp4: not a media file" in state


@pytest.mark.parametrize("name", ON_HUB)
def test_missing_questions_are_named(home, prepare, name):
    for folder in (home / "datasets").glob("*___*"):
        shutil.rmtree(folder)
    code, _, items = prepare(name, "--offline")
    assert (code, items[name]["questions"][0]) == (1, False)
    assert items[name]["questions"][1].startswith(f"not in {home}/datasets/")
    assert table_of(SOURCES[name]).repository in items[name]["questions"][2]
    assert "videos" not in items[name]


def test_questions_that_cannot_be_read_are_named(home, prepare):
    (info,) = (home / "datasets/sy1998___mlvu_dev").rglob("dataset_info.json")
    info.write_text("{")
    code, _, items = prepare("mlvu", "--offline")
    assert code == 1
    assert "sy1998___mlvu_dev: Expecting property name" in items["mlvu"]["questions"][1]
