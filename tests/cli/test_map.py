"""``bimba map``."""

from __future__ import annotations

import json

import pytest
from tiny_checkpoint import tiny_model, write_video

from bimba import cli


@pytest.fixture(scope="module")
def scanning(tmp_path_factory) -> str:
    """A checkpoint whose compressor scans."""
    from bimba.checkpoint import save_pretrained
    from bimba.model.compressor import build_compressor

    model, processor = tiny_model()
    model.config.compressor = {"name": "mamba", "d_state": 4}
    model.compressor = build_compressor(model.config.compressor, model.config.text_config.hidden_size)
    save_pretrained(model, processor, folder := tmp_path_factory.mktemp("model") / "scanning")
    return str(folder)


def test_a_folder_is_written_once(scanning, video, tmp_path, capsys):
    out = tmp_path / "map"
    arguments = ["map", video, "--checkpoint", scanning, "--device", "cpu", "--out", str(out)]
    assert cli.main([*arguments, "--question", "Which?", "--options", "A. red", "B. blue", "--queries", "3"]) == 0
    answer, where = capsys.readouterr().out.splitlines()
    assert answer in ("A. red", "B. blue")
    assert where == f"The map is in {out}; open {out / 'selection.html'}."
    assert {path.name for path in out.iterdir()} == {
        "selection.html", "selection.json", "selection.png", "timeline.png",
    }  # fmt: skip
    numbers = json.loads((out / "selection.json").read_text())
    assert numbers["answer"] == answer
    assert numbers["frames"] == [0, 3, 7, 11]
    assert len(numbers["queries"]["looked_at"]) == 3
    assert cli.main(arguments) == 1
    assert "exists already; give another --out" in capsys.readouterr().err


def test_a_video_whose_name_is_not_utf8(scanning, tmp_path):
    path, out = write_video(tmp_path / "f\udcfcr.mp4"), tmp_path / "map"
    assert cli.main(["map", str(path), "--checkpoint", scanning, "--device", "cpu", "--out", str(out)]) == 0
    assert json.loads((out / "selection.json").read_text())["video"] == str(path)
    assert "f\\udcfcr.mp4" in (out / "selection.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.mp4"], 1, "missing.mp4"),
        (["VIDEO", "--num-frames", "13"], 1, "12 frames, and 13 were asked for"),
        (["VIDEO", "--queries", "0"], 2, "queries"),
        (["VIDEO", "--short"], 2, "of a question; give one"),
        (["VIDEO", "--question", " "], 2, "question is empty"),
        (["VIDEO", "--question", "Who?", "--options", "a"], 2, "Got 1 options"),
        (["VIDEO", "--checkpoint", "bimba-tiny"], 1, "whose compressor is one of: "),
    ],
)
def test_errors_leave_no_folder(scanning, video, tmp_path, capsys, arguments, code, message):
    words = [video if word == "VIDEO" else word for word in arguments]
    if "--checkpoint" not in words:
        words += ["--checkpoint", scanning]
    assert cli.main(["map", *words, "--device", "cpu", "--out", str(tmp_path / "map")]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "map").exists()
