"""What is kept of an open page, and when it goes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bimba.app import sessions as module
from bimba.app.sessions import MAX_EXCHANGES, Answer, Exchange, Reading, Selected, Sessions


def upload(folder: Path, digest: str, name: str = "clip.mp4") -> Path:
    path = folder / digest / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"film")
    return path


@pytest.fixture
def forgotten() -> list:
    return []


@pytest.fixture
def sessions(tmp_path, forgotten) -> Sessions:
    return Sessions(tmp_path, forgotten.extend, keep_s=100)


def test_a_new_video_or_the_end_of_the_session_removes_the_file(sessions, tmp_path, forgotten):
    first, second = upload(tmp_path, "1"), upload(tmp_path, "2")
    reading = sessions.open("me", first)
    reading.keys["model"] = "key of the first"
    sessions.open("me", second)
    assert reading.closed and forgotten == ["key of the first"]
    assert not first.parent.exists() and second.exists()
    sessions.close("me")
    assert sessions.get("me") is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_two_sessions_have_goes_with_the_last_one(sessions, tmp_path, forgotten):
    file = upload(tmp_path, "1")
    for session in ("a", "b"):
        sessions.open(session, file).keys["model"] = "key"
    sessions.close("a")
    assert file.exists() and forgotten == []
    sessions.open("b", file)  # dropped once more
    assert file.exists()
    sessions.close("b")
    assert not file.exists()


def test_the_session_unused_longest_makes_room(sessions, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_SESSIONS", 2)
    files = {name: upload(tmp_path, name) for name in "abc"}
    sessions.open("a", files["a"])
    sessions.open("b", files["b"])
    sessions.get("a")
    sessions.open("c", files["c"])
    assert [sessions.get(name) is not None for name in "abc"] == [True, False, True]
    assert not files["b"].exists()


def test_what_nobody_uses_goes_after_a_time(sessions, tmp_path):
    used, idle = upload(tmp_path, "1"), upload(tmp_path, "2")
    stray, new = upload(tmp_path, "3"), upload(tmp_path, "4")
    sessions.open("a", used)
    sessions.open("b", idle).used -= 101
    for file in (used, stray):
        os.utime(file, (time.time() - 101, time.time() - 101))
    sessions.tidy()
    assert sessions.get("b") is None and sessions.get("a") is not None
    assert [file.exists() for file in (used, idle, stray, new)] == [True, False, False, True]


def test_nothing_outside_the_folder_of_uploads_is_removed(tmp_path, forgotten):
    (tmp_path / "uploads").mkdir()
    sessions = Sessions(tmp_path / "uploads", forgotten.extend, keep_s=100)
    mine = upload(tmp_path, "mine")
    sessions.open("me", mine)
    sessions.close("me")
    assert mine.exists()


def test_a_map_is_found_by_its_token_while_its_session_lasts(sessions, tmp_path):
    reading = sessions.open("me", upload(tmp_path, "1"))
    selected = Selected([], "<svg></svg>", "<p>page</p>", None)
    reading.maps.update(one=selected, other="There is none.")
    assert sessions.selected(selected.token) is selected
    assert sessions.selected(selected.token[:-1]) is None
    sessions.close("me")
    assert sessions.selected(selected.token) is None


def test_the_questions_shown_are_bounded(tmp_path):
    reading = Reading(tmp_path / "clip.mp4", 4)
    for i in range(MAX_EXCHANGES + 3):
        reading.add(Exchange(f"Question {i}?", [], [Answer("model", "done")]))
    assert len(reading.exchanges) == MAX_EXCHANGES
    assert (reading.num_forgotten, reading.exchanges[0].question) == (3, "Question 3?")


def test_errors_name_the_file_as_the_visitor_does(tmp_path):
    reading = Reading(tmp_path / "0f3a" / "clip.mp4", 4)
    assert reading.plain(ValueError(f"{reading.path}: no film, {reading.path}")) == "clip.mp4: no film, clip.mp4"
