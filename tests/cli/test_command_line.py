"""What all commands have in common: help, imports, exit codes, errors without traces."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from as_process import ROOT, command, environment

from bimba import cli
from bimba.cli.common import open_engine, quick_imports
from bimba.inference import VideoQA
from bimba.types import BimbaError

NAMES = [
    [], ["ask"], ["chat"], ["app"], ["map"], ["data", "check"], ["data", "pack"], ["prepare"], ["report"], ["convert"],
    ["egoschema-submission"], ["doctor"],
]  # fmt: skip


def words(names: list[str]) -> str:
    return " ".join(["bimba", *names])


@pytest.mark.parametrize("names", NAMES, ids=words)
def test_help_ends_with_examples_that_parse(names, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*names, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {words(names)}")
    lines = [line.strip() for line in text.splitlines()]
    first = next(i for i, line in enumerate(lines) if line in ("example:", "examples:"))
    examples = [line for line in lines[first + 1 :] if line.startswith("bimba ") and "COMMAND" not in line]
    assert examples and all(line.startswith(words(names)) for line in examples)
    for line in examples:
        typed = re.split("[<>]", line)[0]  # the shell's part of it
        assert callable(cli.build_parser().parse_args(shlex.split(typed, comments=True)[1:]).run)


@pytest.mark.parametrize("names", NAMES, ids=words)
def test_help_imports_neither_torch_nor_transformers(names):
    code = (
        "import sys; from bimba.cli import main\ntry: main(sys.argv[1:])\n"
        "finally: print([m for m in ('torch', 'transformers', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *names, "--help"], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.endswith("\n[]\n")


@pytest.mark.parametrize(
    ("typed", "key", "expected"),
    [
        ("ask clip.mp4 --checkpoint folder Who?", "questions", ["Who?"]),
        ("ask clip.mp4 --short Who? --frames 8 When? --json", "questions", ["Who?", "When?"]),
        ("ask clip.mp4 --frames 8 -- -5?", "questions", ["-5?"]),
        ("ask clip.mp4 --questions file.txt", "questions", []),
        ("data check needle --workers 2 seed=1", "overrides", ["seed=1"]),
    ],
)
def test_words_may_stand_behind_options(typed, key, expected):
    assert getattr(cli.build_parser().parse_args(typed.split()), key) == expected


def test_what_is_no_option_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["ask", "clip.mp4", "--shrot", "Who?"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --shrot" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_script_gets_its_arguments_as_they_are(name, monkeypatch):
    """Also those that look like options of ours."""
    become = []
    monkeypatch.setattr("os.execv", lambda program, words: become.append(words) or sys.exit(0))
    with pytest.raises(SystemExit):
        cli.main([name, "-m", "--help", "seed=1,2"])
    ((program, script, *arguments),) = become
    assert (program, arguments) == (sys.executable, ["-m", "--help", "seed=1,2"])
    assert Path(script).name == f"{name}.py" and Path(script).is_file()


def test_every_command_is_on_its_page():
    page = (ROOT / "docs/cli.md").read_text()
    (choices,) = (action.choices for action in cli.build_parser()._actions if action.dest == "command")
    assert {name for name in choices if not re.search(rf"^\| .*`{name}[ `]", page, re.M)} == set()


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        cli.main(["ask", "video.mp4", "Who?", "--no-such-flag"])
    assert caught.value.code == 2


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("bimba 0.")


def test_a_model_is_named_alike_everywhere():
    parse = cli.build_parser().parse_args
    flags = {
        "checkpoint": "a", "base": "b", "temporal_pooling": "2", "device": "cpu", "dtype": "float32",
        "num_frames": "3", "short_videos": "repeat", "video_backend": "pyav",
    }  # fmt: skip
    written = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    for names in (["ask", "v.mp4", "Who?"], ["chat", "v.mp4"], ["map", "v.mp4", "--out", "out"]):
        parsed = vars(parse([*names, *written]))
        assert {name: str(parsed[name]) for name in flags} == flags


@pytest.mark.parametrize("position", ["before", "after", "variable"])
def test_debug_shows_the_traceback(position, monkeypatch):
    arguments = ["ask", "missing.mp4", "Who?"]
    if position == "variable":
        monkeypatch.setenv("BIMBA_DEBUG", "1")
    with pytest.raises(BimbaError):
        cli.main({"before": ["--debug", *arguments], "after": [*arguments, "--debug"]}.get(position, arguments))


@pytest.mark.parametrize("value", ["", "0"])
def test_debug_is_off_unless_it_is_on(value, monkeypatch, capsys):
    monkeypatch.setenv("BIMBA_DEBUG", value)
    assert cli.main(["ask", "missing.mp4", "Who?"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_user_error_of_the_program_has_no_trace():
    done = subprocess.run(
        command("ask", "missing.mp4", "Who?"), env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: missing.mp4: there is no such file.")
    assert done.stderr.count("\n") == 1


def test_an_error_of_ours_keeps_its_trace(monkeypatch, video):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(VideoQA, "from_pretrained", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["ask", video, "Who?"])


def test_garbage_is_collected_again_after_imports():
    import gc

    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), quick_imports():
        raise ImportError
    assert gc.isenabled()


def test_the_engine_is_the_one_that_the_arguments_name(checkpoint, video):
    arguments = cli.build_parser().parse_args(["chat", video, "--checkpoint", checkpoint, "--dtype", "float64"])
    engine = open_engine(arguments)
    assert str(engine.model.dtype) == "torch.float64"
    assert engine.model.config.text_config.hidden_size == 32
