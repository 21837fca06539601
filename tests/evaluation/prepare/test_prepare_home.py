"""Which folder ``bimba prepare`` looks at, and what is said of a wrong one."""

from __future__ import annotations

import pytest
from hub_stand_in import Hub

from bimba import cli


def test_a_wrong_home_is_noticed_and_nothing_is_downloaded_to_it(home, empty, prepare, monkeypatch, hub_root, tmp_path):
    (tmp_path / "user/.cache").mkdir(parents=True)
    home.rename(tmp_path / "user/.cache/huggingface")
    with Hub(hub_root) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        code, _, items = prepare("all")
        assert code == 1
    for found in items.values():
        ok, state, todo = found["HF_HOME"]
        assert not ok
        assert "has nothing of" in state
        assert todo.startswith(f"export HF_HOME={tmp_path}/user/.cache/huggingface")
    assert list(empty.iterdir()) == []


def test_the_home_that_was_set_is_looked_at_when_another_is_named(home, prepare, tmp_path):
    code, _, items = prepare("nextqa", "--hf-home", str(tmp_path / "new"), "--offline")
    assert code == 1
    ok, state, todo = items["nextqa"]["HF_HOME"]
    assert (ok, state) == (True, f"{tmp_path}/new has nothing of nextqa, {home} has")  # it was named: so be it
    assert todo.endswith(f"--from {home}/nextqa")
    assert not (tmp_path / "new").exists()


def test_a_home_that_is_named_is_to_be_exported(home, prepare, monkeypatch):
    monkeypatch.delenv("HF_HOME")
    code, _, items = prepare("nextqa", "--hf-home", str(home), "--offline")
    assert code == 0
    assert items["nextqa"]["HF_HOME"] == (True, str(home), f"export HF_HOME={home}")


@pytest.mark.parametrize(
    ("value", "message"), [("cache", "'cache', which is not absolute"), ("FILE", "which is a file")]
)
def test_a_home_that_cannot_be_one_is_an_error(prepare, monkeypatch, tmp_path, value, message):
    (tmp_path / "FILE").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "FILE") if value == "FILE" else value)
    code, printed, _ = prepare("mlvu")
    assert code == cli.FAILED
    assert message in printed
