"""``bimba ask``: one or many questions, and what comes out where."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import torch
from as_process import command, environment, start
from tiny_checkpoint import conditioned_model, write_video

from bimba import cli
from bimba.checkpoint import save_pretrained
from bimba.checkpoint.devices import resolve_dtype
from bimba.cli.common import DTYPES, VIDEO_BACKENDS
from bimba.data import isolated
from bimba.data.video import BACKENDS
from bimba.inference import VideoQA


def ask(checkpoint, *arguments):
    return cli.main(["ask", *arguments, "--checkpoint", checkpoint, "--device", "cpu"])


def test_one_answer_per_question(checkpoint, video, capsys):
    encoded = VideoQA.from_pretrained(checkpoint, device="cpu").encode(video, num_frames=2)
    assert ask(checkpoint, video, "Who?", "What?", "--num-frames", "2", "--max-new-tokens", "5") == 0
    captured = capsys.readouterr()
    assert captured.out == f"{encoded.ask('Who?', 5)}\n{encoded.ask('What?', 5)}\n"
    assert captured.err == ""


@pytest.mark.parametrize("source", ["file", "-"])
def test_questions_of_a_file_and_of_standard_input_come_after_the_others(
    checkpoint, video, tmp_path, monkeypatch, capsys, source
):
    encoded = VideoQA.from_pretrained(checkpoint, device="cpu").encode(video)
    text = "What?\n\n  When?\n"
    if source == "file":
        source = str(tmp_path / "questions.txt")
        (tmp_path / "questions.txt").write_text(text)
    else:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert ask(checkpoint, video, "Who?", "--questions", source, "--max-new-tokens", "5") == 0
    expected = [encoded.ask(question, 5) for question in ("Who?", "What?", "When?")]
    assert capsys.readouterr().out.splitlines() == expected


def test_json_is_one_object_a_line_as_each_answer_comes(checkpoint, video, capsys):
    encoded = VideoQA.from_pretrained(checkpoint, device="cpu").encode(video)
    assert ask(checkpoint, video, "Who?", "Où ça?", "--json", "--max-new-tokens", "5") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, question in zip(lines, ("Who?", "Où ça?"), strict=True):
        answer = encoded.generate(question, 5)
        assert line.pop("seconds") >= 0
        assert line == {
            "video": video,
            "question": question,
            "answer": answer.text,
            "prompt_tokens": answer.prompt_tokens,
            "new_tokens": answer.new_tokens,
        }


def test_questions_stand_before_and_behind_options(checkpoint, video, capsys):
    assert ask(checkpoint, video, "Who?", "What?", "--max-new-tokens", "5") == 0
    expected = capsys.readouterr().out
    for words in (["--max-new-tokens", "5", "Who?", "What?"], ["Who?", "--max-new-tokens", "5", "What?"]):
        assert ask(checkpoint, video, *words) == 0
        assert capsys.readouterr().out == expected
    assert ask(checkpoint, video, "--max-new-tokens", "5", "--", "-Who?") == 0


def test_options(checkpoint, video, capsys):
    encoded = VideoQA.from_pretrained(checkpoint, device="cpu").encode(video)
    choice = encoded.choose("Which?", ["red", "blue"])
    assert ask(checkpoint, video, "Which?", "--options", "red", "blue", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["answer"] == choice.letter
    assert answer["option"] == {"A": "red", "B": "blue"}[choice.letter]
    assert answer["probabilities"] == pytest.approx(choice.probabilities)
    assert ask(checkpoint, video, "Which?", "--options", "red", "blue") == 0
    assert capsys.readouterr().out.startswith(f"{choice.letter}: {answer['option']} ")


def test_temporal_pooling_can_be_overridden(checkpoint, video, capsys):
    pooled = VideoQA.from_pretrained(checkpoint, device="cpu", temporal_pooling=2).encode(video)
    assert pooled.ask("Who?", 5) != VideoQA.from_pretrained(checkpoint, device="cpu").encode(video).ask("Who?", 5)
    assert ask(checkpoint, video, "Who?", "--temporal-pooling", "2", "--max-new-tokens", "5") == 0
    assert capsys.readouterr().out == f"{pooled.ask('Who?', 5)}\n"


def test_short_answers(checkpoint, video, capsys):
    encoded = VideoQA.from_pretrained(checkpoint, device="cpu").encode(video)
    assert ask(checkpoint, video, "Who?", "--short", "--max-new-tokens", "5") == 0
    assert capsys.readouterr().out == f"{encoded.ask('Who?', 5, short=True)}\n"


def test_a_model_that_reads_the_question(video, tmp_path, capsys):
    save_pretrained(*conditioned_model(), folder := tmp_path / "conditioned")
    encoded = VideoQA.from_pretrained(folder, device="cpu").encode(video)
    assert ask(str(folder), video, "Who?", "--max-new-tokens", "5") == 0
    assert capsys.readouterr().out == f"{encoded.ask('Who?', 5)}\n"


def test_the_dtype_is_the_one_asked_for(checkpoint, video, monkeypatch, capsys):
    found, encode = [], VideoQA.encode
    monkeypatch.setattr(
        VideoQA, "encode", lambda self, *a, **k: (found.append(self.model.dtype), encode(self, *a, **k))[1]
    )
    assert ask(checkpoint, video, "Who?", "--max-new-tokens", "2", "--dtype", "bfloat16") == 0
    assert str(found[0]) == "torch.bfloat16"
    with pytest.raises(SystemExit, match="2"):
        ask(checkpoint, video, "Who?", "--dtype", "int4")
    assert "--dtype: invalid choice: 'int4' (choose from" in capsys.readouterr().err


def test_the_video_backend_is_the_one_asked_for(checkpoint, video, monkeypatch, capsys):
    monkeypatch.setenv("BIMBA_VIDEO_BACKEND", "auto")  # undone after the test
    asked, call = [], isolated.call
    monkeypatch.setattr(isolated, "call", lambda *a, **k: (asked.append(a[-1]), call(*a, **k))[1])
    assert ask(checkpoint, video, "Who?", "--max-new-tokens", "2", "--video-backend", "pyav") == 0
    assert asked == ["pyav"]
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        ask(checkpoint, video, "Who?", "--video-backend", "opencv")
    assert "--video-backend: invalid choice: 'opencv' (choose from" in capsys.readouterr().err


def test_the_words_of_the_command_line_are_those_of_the_package():
    assert set(VIDEO_BACKENDS) == {"auto", *BACKENDS}
    assert all(resolve_dtype(name) is getattr(torch, name) for name in DTYPES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.mp4", "Who?"], "missing.mp4"),
        (["VIDEO", "Who?", "--frames", "100000"], "fewer frames"),
        (["VIDEO", "Who?", "--questions", "nowhere.txt"], "--questions nowhere.txt: No such file"),
        (["VIDEO", "Who?", "--checkpoint", "nowhere"], "nowhere"),
    ],
)
def test_what_fails_is_one_line_and_exits_1(checkpoint, video, capsys, arguments, message):
    words = [video if word == "VIDEO" else word for word in arguments]
    assert cli.main(["ask", "--checkpoint", checkpoint, *words]) == 1
    check_error(capsys.readouterr(), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["VIDEO"], "There is no question"),
        (["VIDEO", " "], "The question is empty"),
        (["VIDEO", "Who?", "--options", "one"], "--options: Got 1 options"),
        (["VIDEO", "Who?", "--options", "a", ""], "--options: One of the options ['a', ''] is empty"),
        (["VIDEO", "Who?", "--options", "A. red", "B. red"], "--options: The option 'red' is there more than once"),
        (["VIDEO", "Who?", "--options", "a", "b", "--short"], "do not go together"),
        (["VIDEO", "Who?", "--num-frames", "0"], "--num-frames is 0; expected 1 or more"),
        (["VIDEO", "Who?", "--temporal-pooling", "0"], "--temporal-pooling is 0; expected 1 or more"),
        (["VIDEO", "Who?", "--max-new-tokens", "-1"], "--max-new-tokens is -1; expected 1 or more"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_2_before_a_model_is_loaded(video, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(VideoQA, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
    assert cli.main(["ask", *(video if word == "VIDEO" else word for word in arguments)]) == 2
    check_error(capsys.readouterr(), message)


def check_error(captured, message):
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(("content", "message"), [(b"\n \n", "no question in it"), (b"\xff\xfe?", "not UTF-8 text")])
def test_a_file_without_questions(checkpoint, video, tmp_path, capsys, content, message):
    (tmp_path / "questions.txt").write_bytes(content)
    assert ask(checkpoint, video, "--questions", str(tmp_path / "questions.txt")) == 1
    check_error(capsys.readouterr(), message)


def test_words_that_are_not_utf8(checkpoint, video, capsys):
    for words in (["f\udcfcr?"], ["Who?", "--options", "f\udcfcr", "a"]):
        assert ask(checkpoint, video, *words) == 1
        check_error(capsys.readouterr(), "has bytes that are not UTF-8")


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii"])
def test_what_standard_output_cannot_write_is_escaped(checkpoint, tmp_path, encoding):
    path = write_video(tmp_path / "f\udcfcr.mp4")
    arguments = command("ask", str(path), "Où ça?", "--json", "--max-new-tokens", "2", "--checkpoint", checkpoint)
    done = subprocess.run(arguments, capture_output=True, env={**environment(), "PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["video"], answer["question"]) == (str(path), "Où ça?")


def test_a_short_video_is_refused_with_the_flags_that_help(checkpoint, tmp_path, capsys):
    path = str(write_video(tmp_path / "short.mp4", num_frames=3))
    assert ask(checkpoint, path, "Who?") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {path}: 3 frames, and 4 were asked for.")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    for flags in (("--frames", "3"), ("--short-videos", "repeat")):
        assert all(flag in captured.err for flag in flags)
        assert ask(checkpoint, path, "Who?", "--max-new-tokens", "2", *flags) == 0


def test_a_folder_that_is_no_checkpoint(video, tmp_path, capsys):
    assert ask(str(tmp_path), video, "Who?") == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_trace(checkpoint, video):
    arguments = command("ask", video, *["Who?"] * 50, "--max-new-tokens", "1", "--checkpoint", checkpoint)
    with start(arguments) as asked:
        assert asked.stdout.readline()
        asked.stdout.close()
        assert asked.stderr.read() == ""
    assert asked.returncode == 1


def test_asking_imports_nothing_of_training_and_evaluation(checkpoint, video):
    code = (
        "import sys; from bimba.cli import main; code = main(sys.argv[1:]); print(code, *sorted(m for m in sys.modules "
        "if m in ('lightning', 'lmms_eval', 'wandb', 'matplotlib', 'sklearn', 'hydra', 'gradio')), file=sys.stderr)"
    )
    arguments = ["ask", video, "Who?", "--max-new-tokens", "2", "--checkpoint", checkpoint]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.stderr == "0\n"
    assert len(done.stdout.splitlines()) == 1
