"""The console script, in this process where it can be and in its own where imports and exit codes matter."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # tests/tiny_checkpoint.py, whatever pytest was called from

from tiny_checkpoint import tiny_model, write_video

from bimba import cli
from bimba.data import isolated
from bimba.inference import VideoQA
from bimba.report import doctor
from bimba.types import BimbaError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    from bimba.checkpoint import save_pretrained

    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_pretrained(*tiny_model(), folder)
    return str(folder)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    return str(write_video(tmp_path_factory.mktemp("videos") / "noise.mp4"))


def ask(checkpoint, *arguments):
    return cli.main(["ask", *arguments, "--checkpoint", checkpoint, "--device", "cpu"])


@pytest.mark.parametrize(
    "arguments", [["--help"], ["ask", "--help"], ["map", "--help"], ["prepare", "--help"], ["doctor", "--help"]]
)
def test_help_imports_no_torch(arguments):
    code = "import sys; from bimba.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: bimba")
    assert done.stdout.endswith("False\n")


def test_ask_prints_one_answer_per_question(checkpoint, video, capsys):
    encoded = VideoQA.from_pretrained(checkpoint, device="cpu").encode(video, num_frames=2)
    assert ask(checkpoint, video, "Who?", "What?", "--frames", "2", "--max-new-tokens", "5") == 0
    assert capsys.readouterr().out == f"{encoded.ask('Who?', 5)}\n{encoded.ask('What?', 5)}\n"


def test_temporal_pooling_can_be_overridden(checkpoint, video, capsys):
    pooled = VideoQA.from_pretrained(checkpoint, device="cpu", temporal_pooling=2).encode(video)
    assert pooled.ask("Who?", 5) != VideoQA.from_pretrained(checkpoint, device="cpu").encode(video).ask("Who?", 5)
    assert ask(checkpoint, video, "Who?", "--temporal-pooling", "2", "--max-new-tokens", "5") == 0
    assert capsys.readouterr().out == f"{pooled.ask('Who?', 5)}\n"


def test_short_answers(checkpoint, video, capsys):
    encoded = VideoQA.from_pretrained(checkpoint, device="cpu").encode(video)
    assert ask(checkpoint, video, "Who?", "--short", "--max-new-tokens", "5") == 0
    assert capsys.readouterr().out == f"{encoded.ask('Who?', 5, short=True)}\n"


def test_the_video_backend_is_the_one_asked_for(checkpoint, video, monkeypatch, capsys):
    monkeypatch.setenv("BIMBA_VIDEO_BACKEND", "auto")  # undone after the test
    asked, call = [], isolated.call
    monkeypatch.setattr(isolated, "call", lambda *a, **k: (asked.append(a[-1]), call(*a, **k))[1])
    assert ask(checkpoint, video, "Who?", "--max-new-tokens", "2", "--video-backend", "pyav") == 0
    assert asked == ["pyav"]
    capsys.readouterr()
    assert ask(checkpoint, video, "Who?", "--video-backend", "opencv") == 2
    assert "'opencv'; expected one of auto, decord, torchcodec, pyav" in capsys.readouterr().err


def test_options_and_json(checkpoint, video, capsys):
    assert ask(checkpoint, video, "Which?", "--options", "red", "blue", "--json") == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["question"] == "Which?"
    assert answer["answer"] in "AB"
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert ask(checkpoint, video, "Which?", "--options", "red", "blue") == 0
    assert capsys.readouterr().out.startswith(f"{answer['answer']}: {'red' if answer['answer'] == 'A' else 'blue'} ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.mp4", "Who?"], "missing.mp4"),
        (["VIDEO", " "], "question is empty"),
        (["VIDEO", "Who?", "--options", "one"], "1 options"),
        (["VIDEO", "Who?", "--frames", "100000"], "fewer frames"),
        (["VIDEO", "Who?", "--temporal-pooling", "0"], "temporal_pooling is 0"),
        (["VIDEO", "Who?", "--options", "a", "b", "--short"], "do not go together"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(checkpoint, video, capsys, arguments, message):
    assert ask(checkpoint, *(video if argument == "VIDEO" else argument for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_short_video_is_refused_with_the_flags_that_help(checkpoint, tmp_path, capsys):
    path = str(write_video(tmp_path / "short.mp4", num_frames=3))
    assert ask(checkpoint, path, "Who?") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {path}: 3 frames, and 4 were asked for.")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    for flags in (("--frames", "3"), ("--short-videos", "repeat")):
        assert all(flag in captured.err for flag in flags)
        assert ask(checkpoint, path, "Who?", "--max-new-tokens", "2", *flags) == 0


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


def test_map_writes_a_folder_once(scanning, video, tmp_path, capsys):
    out = tmp_path / "map"
    arguments = ["map", video, "--checkpoint", scanning, "--device", "cpu", "--out", str(out)]
    assert cli.main([*arguments, "--question", "Which?", "--options", "red", "blue", "--queries", "3"]) == 0
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
    assert cli.main(arguments) == 2
    assert "exists already; give another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.mp4"], "missing.mp4"),
        (["VIDEO", "--num-frames", "13"], "12 frames, and 13 were asked for"),
        (["VIDEO", "--queries", "0"], "0 queries"),
        (["VIDEO", "--short"], "of a question; give one"),
        (["VIDEO", "--question", " "], "question is empty"),
        (["VIDEO", "--checkpoint", "bimba-tiny"], "whose compressor is one of: "),
    ],
)
def test_map_errors_leave_no_folder(scanning, video, tmp_path, capsys, arguments, message):
    words = [video if word == "VIDEO" else word for word in arguments]
    if "--checkpoint" not in words:
        words += ["--checkpoint", scanning]
    assert cli.main(["map", *words, "--device", "cpu", "--out", str(tmp_path / "map")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "map").exists()


def test_a_folder_that_is_no_checkpoint_is_a_user_error(video, tmp_path, capsys):
    assert ask(str(tmp_path), video, "Who?") == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("position", ["before", "after"])
def test_debug_shows_the_traceback(checkpoint, position):
    arguments = ["ask", "missing.mp4", "Who?", "--checkpoint", checkpoint]
    with pytest.raises(BimbaError):
        cli.main(["--debug", *arguments] if position == "before" else [*arguments, "--debug"])


def test_ctrl_c_exits_130(checkpoint, video, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoQA, "encode", interrupt)
    assert ask(checkpoint, video, "Who?") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2


def test_doctor_names_versions_device_and_backends(monkeypatch, capsys):
    for variable in ("BIMBA_SCAN_BACKEND", "BIMBA_CONV_BACKEND"):
        monkeypatch.delenv(variable, raising=False)
    assert cli.main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["video: decord"] == findings["video: pyav"] == "ready"
    assert {"python", "torch", "lmms-eval", "cpu", "selective_scan: reference", "causal_conv1d: pytorch"} <= set(
        findings
    )
    for op in ("selective_scan", "causal_conv1d"):
        assert sum(name.startswith(op) and "first choice" in state for name, state in findings.items()) == 1
    assert cli.main(["doctor"]) == 0
    assert "transformers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variable", "op", "name"),
    [("BIMBA_SCAN_BACKEND", "selective_scan", "reference"), ("BIMBA_CONV_BACKEND", "causal_conv1d", "pytorch")],
)
def test_doctor_says_which_backend_a_variable_chose(variable, op, name, monkeypatch, capsys):
    monkeypatch.setenv(variable, name)
    assert cli.main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings[f"{op}: {name}"] == f"ready, chosen by {variable}"
    assert not any(what.startswith(op) and "first choice" in state for what, state in findings.items())


@pytest.mark.parametrize(
    ("name", "state"),
    [
        (
            "quick",
            "chosen by BIMBA_SCAN_BACKEND, but no backend is called so; set BIMBA_SCAN_BACKEND to one of: auto, ",
        ),
        ("cpp", "chosen by BIMBA_SCAN_BACKEND, but a test took the compiler away; or unset BIMBA_SCAN_BACKEND"),
    ],
)
def test_doctor_finds_fault_with_a_variable_that_names_what_cannot_run(name, state, monkeypatch, capsys):
    from bimba.ops.selective_scan import REGISTRY

    without = replace(REGISTRY.backends["cpp"], unavailable=lambda: "a test took the compiler away")
    monkeypatch.setitem(REGISTRY.backends, "cpp", without)
    monkeypatch.setenv("BIMBA_SCAN_BACKEND", name)
    assert cli.main(["doctor", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert findings[f"selective_scan: {name}"].startswith(state)
    monkeypatch.setenv("BIMBA_SCAN_BACKEND", "")
    assert cli.main(["doctor", "--json"]) == 0


def test_doctor_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "REQUIRED", ("no-such-package",))
    assert cli.main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["no-such-package"].startswith("missing")
