"""The choice of a backend: found by file, asked before it runs, never replaced in silence."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bimba.ops.backend import Registry
from bimba.types import BimbaError

FAST = """
from bimba.ops.backend import Backend
BACKEND = Backend(
    forward=lambda x, save: ("fast", x), backward=lambda x, saved: (), priority=2,
    unavailable=lambda: {unavailable!r},
    refuses=lambda x: "x must be even" if x % 2 else None, expected={expected!r},
)
"""
SLOW = """
from bimba.ops.backend import Backend
BACKEND = Backend(forward=lambda x, save: ("slow", x), backward=lambda x, saved: (), priority=1)
"""


@pytest.fixture
def make_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, unavailable: str | None = None, expected: bool = False) -> Registry:
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "fast.py").write_text(FAST.format(unavailable=unavailable, expected=expected))
        (package / "slow.py").write_text(SLOW)
        (package / "helper.py").touch()
        return Registry(name, variable="BIMBA_TEST_BACKEND")

    return make


def test_auto_takes_the_best_that_accepts_the_inputs(make_registry) -> None:
    registry = make_registry("op_auto")
    assert list(registry.backends) == ["fast", "slow"]
    assert registry.choose("auto", 2).forward(2, save=False) == ("fast", 2)
    assert registry.choose("auto", 3).forward(3, save=False) == ("slow", 3)


def test_auto_says_once_what_it_chose_and_why(make_registry, caplog: pytest.LogCaptureFixture) -> None:
    registry = make_registry("op_log", unavailable="no fast machine; buy one")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            registry.choose("auto", 2)
    assert [record.message for record in caplog.records] == [
        "op_log: backend 'fast' passed over: no fast machine; buy one",
        "op_log: auto chose backend 'slow'",
    ]


def test_an_expected_backend_that_is_unavailable_is_warned_of_once(make_registry, caplog) -> None:
    registry = make_registry("op_expected", unavailable="no fast machine; buy one", expected=True)
    with caplog.at_level(logging.WARNING, logger="bimba.ops.backend"):  # whatever other tests set
        registry.choose("auto", 3)  # would be refused on any machine
        assert not caplog.records
        for _ in range(3):
            registry.choose("auto", 2)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == "op_expected: backend 'fast' passed over: no fast machine; buy one"


def test_an_expected_backend_that_refuses_the_inputs_is_passed_over_quietly(make_registry, caplog) -> None:
    registry = make_registry("op_expected_refuses", expected=True)
    with caplog.at_level(logging.INFO):
        registry.choose("auto", 3)
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.INFO]


def test_an_empty_variable_is_the_same_as_none(make_registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make_registry("op_empty")
    monkeypatch.setenv("BIMBA_TEST_BACKEND", "")
    assert registry.choose("auto", 2).forward(2, save=False) == ("fast", 2)


def test_a_variable_names_what_auto_takes(make_registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make_registry("op_variable")
    monkeypatch.setenv("BIMBA_TEST_BACKEND", "slow")
    assert registry.choose("auto", 2).forward(2, save=False) == ("slow", 2)
    assert registry.choose("fast", 2).forward(2, save=False) == ("fast", 2)
    monkeypatch.setenv("BIMBA_TEST_BACKEND", "quick")
    with pytest.raises(BimbaError, match="no backend is called 'quick'"):
        registry.choose("auto", 2)


def test_a_named_backend_that_cannot_run_raises(make_registry) -> None:
    registry = make_registry("op_named", unavailable="no fast machine; buy one")
    with pytest.raises(BimbaError, match="'fast' was asked for but cannot run: no fast machine; buy one"):
        registry.choose("fast", 2)
    assert registry.choose("slow", 2).forward(2, save=False) == ("slow", 2)


def test_a_named_backend_that_refuses_the_inputs_raises(make_registry) -> None:
    with pytest.raises(BimbaError, match="x must be even"):
        make_registry("op_refuses").choose("fast", 3)


def test_an_unknown_name_lists_the_known_ones(make_registry) -> None:
    with pytest.raises(BimbaError, match="'quick'; choose one of: auto, fast, slow"):
        make_registry("op_unknown").choose("quick", 2)
