from __future__ import annotations

import sys

import pytest
from harness import work

from bimba.report.facts import changes, command, throughput, versions


def test_throughput_is_of_all_processes_and_the_slowest_one_says_how_long():
    one = work(decoded=3, stored=1, cached=2, answered=9, wait_s=1.0, encode_s=2.0, answer_s=3.0)
    other = work(decoded=1, answered=3, wait_s=0.5, encode_s=1.0, answer_s=0.5)
    found = throughput([one, other], resumed=7)
    assert (found["decoded"], found["stored"], found["cached"], found["answered"], found["resumed"]) == (4, 1, 2, 12, 7)
    assert (found["processes"], found["wall_s"]) == (2, 6.0)
    assert found["videos_per_s"] == pytest.approx(5 / 6)
    assert found["questions_per_s"] == pytest.approx(2.0)
    assert found["wait_share"] == pytest.approx(1.5 / 8)


def test_a_run_that_answered_nothing_has_no_rates():
    found = throughput([work()], resumed=3)
    assert (found["videos_per_s"], found["questions_per_s"], found["wait_share"]) == (None, None, None)


def test_changes_name_the_key_the_default_and_the_value():
    before = {"a": 1, "b": {"c": 2, "d": None}, "gone": 1}
    after = {"a": 1, "b": {"c": 3, "d": None}, "new": []}
    assert changes(before, after) == [("b.c", 2, 3), ("gone", 1, "(none)"), ("new", "(none)", [])]


def test_the_command_can_be_pasted_into_a_shell(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/evaluate.py", "checkpoint=my run/x", "limit=2"])
    assert command() == "python evaluate.py 'checkpoint=my run/x' limit=2"


def test_versions_are_those_installed():
    import torch

    assert torch.__version__.startswith(versions()["torch"])  # which has a local part too
    assert versions()["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
