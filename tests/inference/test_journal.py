"""The journal: what was answered is there after a kill, a full disk, a second evaluation."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys

import pytest

from bimba.inference.answer import Generation
from bimba.inference.journal import Journal, journal_key
from bimba.types import BimbaError

B = Generation("B\n", 10, 2)
EMPTY = Generation("", 10, 1)


def asked(i: int) -> dict:
    return {"task": "t", "doc_id": i}


def add(journal: Journal, i: int, answer: Generation = B) -> None:
    journal.add(journal_key(asked(i)), asked(i), answer)


def found(folder) -> dict[str, Generation]:
    with Journal(folder) as journal:
        return dict(journal.answers)


def test_answers_are_on_the_disk_when_they_are_added(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), fsync(file)))
    with Journal(tmp_path / "new" / "folder") as journal:
        add(journal, 0)
        add(journal, 1, EMPTY)
        lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
        assert len(synced) == 2
    assert [(line["task"], line["doc_id"], line["text"]) for line in lines] == [("t", 0, "B\n"), ("t", 1, "")]
    assert found(tmp_path / "new" / "folder") == {journal_key(asked(0)): B, journal_key(asked(1)): EMPTY}


def test_whatever_an_answer_depends_on_makes_another_key():
    assert journal_key({"a": 1, "b": 2}) == journal_key({"b": 2, "a": 1})
    assert len({journal_key({"a": a, "b": b}) for a in (1, 2, "1") for b in (1, None)}) == 6


@pytest.mark.parametrize("tail", [b'{"key": "abc", "te', b"\x00\x00\x00", b"{"])
def test_a_half_written_last_line_is_cut_off(tmp_path, tail, caplog):
    with Journal(tmp_path) as journal:
        add(journal, 0)
    with journal.path.open("ab") as file:
        file.write(tail)
    with caplog.at_level(logging.WARNING), Journal(tmp_path) as journal:
        assert list(journal.answers) == [journal_key(asked(0))]
        add(journal, 1)
    assert "1 lines are not whole" in caplog.text
    assert [json.loads(line)["doc_id"] for line in journal.path.read_text().splitlines()] == [0, 1]


def test_a_damaged_line_in_between_costs_itself_alone(tmp_path):
    with Journal(tmp_path) as journal:
        for i in range(3):
            add(journal, i)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(lines[0] + b'{"key": 1}\n' + lines[2])
    assert set(found(tmp_path)) == {journal_key(asked(0)), journal_key(asked(2))}


def test_answers_about_short_videos_are_marked_and_a_line_without_the_mark_is_read(tmp_path):
    with Journal(tmp_path) as journal:
        journal.add("short", asked(0), B, is_short=True)
        journal.add("long", asked(1), B)
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    earlier = {name: value for name, value in lines[0].items() if name != "is_short"} | {"key": "earlier"}
    journal.path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, earlier]))
    with Journal(tmp_path) as journal:
        assert set(journal.answers) == {"short", "long", "earlier"}
        assert journal.short == {"short"}


def test_ranks_have_a_file_each_and_read_those_of_all(tmp_path):
    with Journal(tmp_path, rank=0) as first, Journal(tmp_path, rank=1) as second:
        add(first, 0)
        add(second, 1)
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["journal-0.jsonl", "journal-1.jsonl"]
    assert len(found(tmp_path)) == 2


def test_two_evaluations_on_one_folder_are_refused_until_the_first_has_ended(tmp_path):
    code = "import sys; from bimba.inference.journal import Journal; Journal(sys.argv[1]).close()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with Journal(tmp_path):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode != 0
        assert f"BimbaError: Another evaluation is writing to {tmp_path}" in done.stderr
    assert subprocess.run(command).returncode == 0


def test_a_full_disk_loses_nothing_once_there_is_space_again(tmp_path, monkeypatch, caplog):
    pwrite = os.pwrite

    def half_and_full(file, block, where):
        pwrite(file, block[: len(block) // 2], where)
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal(tmp_path) as journal:
        add(journal, 0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", half_and_full)
            add(journal, 1)
            add(journal, 2)
        assert journal.unwritten == 2
        assert len(journal.answers) == 3
        assert "the disk is full" in caplog.text
        assert "2 answers are kept in memory" in caplog.text
        add(journal, 3)
        assert journal.unwritten == 0
    assert [json.loads(line)["doc_id"] for line in journal.path.read_text().splitlines()] == [0, 1, 2, 3]


def test_a_disk_that_stays_full_is_reported_at_the_end(tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal(tmp_path)
    add(journal, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        add(journal, 1)
        journal.close()
    assert "1 answers are in the results but not in" in caplog.text
    assert list(found(tmp_path)) == [journal_key(asked(0))]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BimbaError, match="cannot hold a journal"):
        Journal(tmp_path / "file" / "journal")
