"""``bimba data check``: everything that is wrong is found, and named by file and row; the exit code says whether."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from bimba.cli import main
from bimba.report.data_check import BARS, histogram
from tests.data import layout
from tests.data.layout import ACADEMIC, YOUTUBE, talk


@pytest.fixture
def root(tmp_path: Path) -> Path:
    layout.make(tmp_path)
    return tmp_path


def check(root: Path, *options: str, mixture: str = "mixture.yaml") -> int:
    return main(["data", "check", str(root / mixture), "--video-root", str(root), "--frames", "4", *options])


def test_sound_data(root, capsys):
    assert check(root, "--html", str(root / "out" / "check.html")) == 0
    said = capsys.readouterr().out
    assert "12 rows (6 video, 3 image, 2 text, 1 multi_image) of 5 files, 5 media" in said
    assert "5 of 5 media decoded" in said
    assert "Nothing is wrong" in said
    assert "Tokens of 12 samples (bimba-tiny; the limit is 32,768)" in said
    for source, cells in {YOUTUBE: ["4", "8", "4"], "pictures": ["4", "7", "5"], "texts": ["2", "2", "0"]}.items():
        (line,) = [line for line in said.splitlines() if f" {source} " in line]
        assert [cell.strip() for cell in line.split("│")[2:5]] == cells
    page = (root / "out" / "check.html").read_text()
    assert "Nothing is wrong" in page
    assert f"<td>{YOUTUBE}</td><td>4</td><td>8</td><td>4</td>" in page


def test_everything_that_is_wrong(root, capsys):
    videos = root / YOUTUBE / "liwei_youtube_videos" / "videos"
    (videos / "0.mp4").write_text("no video")
    (root / ACADEMIC / "academic_source" / "Charades" / "0.mp4").unlink()
    (root / "pictures" / "a.png").write_text("<html>")
    rows = [
        {"id": 1, "conversations": talk("Only a question.")},
        {"id": 2, "conversations": talk("A?", "B.")},
        {"id": 2, "conversations": talk("A?", "C." * 40_000)},
        {"id": 3, "image": "../secret.png", "conversations": talk("<image>", "Yes.")},
        {"id": 4, "image": ["a.png", "b.png"], "conversations": talk("<image>", "Yes.")},
    ]
    layout.write(root / "more<b>.json", rows)
    (root / "broken.jsonl").write_text(json.dumps({"id": 1, "conversations": talk("A?", "B.")}) + "\n{\n")
    entries = [*layout.MIXTURE, {"json_path": "more<b>.json"}, {"json_path": "broken.jsonl"}]
    (root / "bad.yaml").write_text(yaml.safe_dump({"datasets": entries}))
    assert check(root, "--html", str(root / "check.html"), mixture="bad.yaml") == 1
    said = capsys.readouterr().out
    expected = [
        "annotations: 4",
        f"{root}/more<b>.json, row 0: no turn from 'gpt'",
        f"{root}/more<b>.json, row 3: 'image' is '../secret.png', which leads out of the image folder",
        f"{root}/more<b>.json, row 4: 1 <image> tags in the human turns, for 2 images",
        f"{root}/broken.jsonl, line 2: not valid JSON",
        "duplicate id: 1",
        f"{root}/more<b>.json, row 2: the id 2 is that of row 1 too",
        "missing: 1",
        f"{ACADEMIC}_mc_qa_processed.json, row 0: there is no {root / ACADEMIC}/academic_source/Charades/0.mp4",
        "unreadable: 2",
        f"{YOUTUBE}_cap_processed.json, row 0: {videos / '0.mp4'}: not a media file",
        f"pictures.jsonl, line 1: {root}/pictures/a.png: not an image",
        "too long: 1",
        f"{root}/more<b>.json, row 2: ",
    ]
    for words in expected:
        assert words in said, words
    assert "Wrong: 4 annotations, 1 duplicate id, 1 missing, 2 unreadable, 1 too long." in said
    page = (root / "check.html").read_text()
    assert "more&lt;b&gt;.json, row 0" in page
    assert "more<b>" not in page
    assert "annotations: 4" in page


def test_a_sample_of_the_media_or_all(root, capsys):
    assert check(root, "--sample", "2") == 0
    assert "2 of 5 media decoded" in capsys.readouterr().out
    assert check(root, "--sample", "0", "--all", "--workers", "1") == 0
    assert "5 of 5 media decoded" in capsys.readouterr().out
    assert check(root, "--sample", "-1") == 2
    assert "--sample takes 0 or more" in capsys.readouterr().err


def test_videos_shorter_than_the_frames_that_are_read(root, capsys):
    assert main(["data", "check", str(root / "mixture.yaml"), "--video-root", str(root), "--frames", "13"]) == 1
    assert "12 frames, and 13 are read of each" in capsys.readouterr().out


def test_one_file(root, capsys):
    pictures = str(root / "pictures.jsonl")
    assert main(["data", "check", pictures, "--video-root", str(root / "pictures")]) == 0
    assert main(["data", "check", pictures]) == 1  # paths start from its own folder
    assert f"there is no {root / 'b.png'}" in capsys.readouterr().out


def test_a_mixture_that_names_what_is_not_there(root, capsys):
    (root / "absent.yaml").write_text(yaml.safe_dump({"datasets": [{"json_path": "nowhere.json"}]}))
    assert check(root, mixture="absent.yaml") == 1
    assert "entry 1: " in (said := capsys.readouterr().err)
    assert "nowhere.json: no such annotation file" in said


def test_data_of_the_configuration(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BIMBA_ROOT", str(tmp_path))  # data that is not there yet is made, as in training
    clips = ["data.prepare.num_clips={train: 3, test: 1}", "data.prepare.workers=1", "data.prepare.config.size=32",
             "data.prepare.config.needle_px=8", "data.prepare.config.needle_grid_px=8"]  # fmt: skip
    assert main(["data", "check", "needle", *clips]) == 0
    said, told = capsys.readouterr()
    assert told.startswith("Writing first what is not there yet of ")
    assert "3 rows (3 video)" in said
    assert "3 of 3 media decoded" in said
    assert "the limit is 8,192" in said
    conf = Path(__file__).parents[2] / "conf" / "data"
    monkeypatch.chdir(tmp_path)
    for name in (str(conf / "needle"), "conf/data/needle", "conf/data/needle.yaml"):
        assert main(["data", "check", name, *clips]) == 0
    assert "Writing" not in "".join(capsys.readouterr())  # it is all there
    needle = tmp_path / "data" / "needle" / "train"
    (needle / "videos" / "000001.mp4").unlink()
    keys = [f"data.annotations={needle / 'annotations.json'}", f"data.video_folder={needle}"]
    assert main(["data", "check", str(conf / "llava_video.yaml"), *keys]) == 1
    assert "there is no" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing: neither a file nor data of conf/data"),
        (["llava_video_178k"], "data=llava_video_178k has no default for data.video_root"),
        (["needle_rendered"], "made while it is trained on; there are no files to check"),
        (["llava_video_178k", "data.video_root=nowhere"], "nowhere: no such folder"),
        (["nowhere.yaml"], "nowhere.yaml: no such mixture"),
        (["nowhere.json", "data.x=1"], "data.x=1: keys are for data of conf/data"),
    ],
)
def test_what_the_user_got_wrong(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("BIMBA_ROOT", str(tmp_path))
    assert main(["data", "check", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_bars_hold_every_sample():
    for lengths in ([5], [1, 1, 2], list(range(1000)), [3, 90_000]):
        bars = histogram(np.array(lengths))
        assert sum(count for *_, count in bars) == len(lengths)
        assert len(bars) <= BARS
        assert (bars[0][0], bars[-1][1] >= max(lengths)) == (min(lengths), True)
        assert all(last + 1 == first for (_, last, _), (first, _, _) in zip(bars, bars[1:], strict=False))
    assert histogram(np.zeros(0)) == []


def test_a_picture_whose_size_is_unknown_has_no_length(root, capsys):
    Image.new("RGB", (64, 64)).save(root / "pictures" / "b.png")
    (root / "pictures" / "a.png").write_text("damaged")
    assert check(root) == 1
    assert "Tokens of 10 samples" in capsys.readouterr().out  # two of the rows show a.png
