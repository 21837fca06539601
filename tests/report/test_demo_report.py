from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bimba.report import demo
from bimba.report.accuracy import score


def write_run(folder, correct, n=400, checkpoint="outputs/demo/checkpoint"):
    folder.mkdir()
    tasks = {f"bimba_needle_{task}": asdict(score(task, c, n, 0.25)) for task, c in correct.items()}
    (folder / "summary.json").write_text(json.dumps({"checkpoint": checkpoint, "tasks": tasks}))
    return folder


def run(tmp_path, *folders):
    return demo.main(["--before", str(folders[0]), "--after", str(folders[1]), "--out", str(tmp_path / "summary.json")])


def test_the_summary_joins_before_and_after(tmp_path, capsys):
    before = write_run(tmp_path / "before", {"retrieval": 120, "counting": 100}, checkpoint="bimba-tiny")
    after = write_run(tmp_path / "after", {"retrieval": 280, "counting": 160})
    assert run(tmp_path, before, after) == 0
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "retrieval": {"before": 0.3, "after": 0.7, "chance": 0.25, "n": 400},
        "counting": {"before": 0.25, "after": 0.4, "chance": 0.25, "n": 400},
    }
    printed = capsys.readouterr().out
    assert "70.0 %" in printed
    assert "What to try next" in printed
    assert "outputs/demo/checkpoint" in printed
    assert "| retrieval | 30.0 % | 70.0 % | 65.3 to 74.3 % | 25.0 % | 400 |" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("used", [False, True])
def test_the_next_steps_begin_with_the_virtual_environment_unless_the_shell_is_in_it(tmp_path, monkeypatch, used):
    """``make`` has made it, and who typed ``make demo`` has not activated it."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.prefix", str(tmp_path / ".venv"))
    if used:
        monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / ".venv"))
    else:
        monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    lines = demo.next_steps("checkpoint").splitlines()
    assert ("  source .venv/bin/activate" in lines) is not used
    assert any(line.startswith("  bimba ask") for line in lines)


def test_different_questions_are_not_compared(tmp_path, capsys):
    before = write_run(tmp_path / "before", {"retrieval": 1}, n=4)
    after = write_run(tmp_path / "after", {"retrieval": 1}, n=5)
    assert run(tmp_path, before, after) == 2
    assert "different questions" in capsys.readouterr().err
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(("content", "message"), [(None, "No summary.json"), ("{", "not JSON"), ("{}", "no tasks")])
def test_a_folder_without_a_summary_is_named(tmp_path, capsys, content, message):
    broken = tmp_path / "broken"
    broken.mkdir()
    if content is not None:
        (broken / "summary.json").write_text(content)
    assert run(tmp_path, broken, broken) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(broken) in error
