from __future__ import annotations

import pytest

from bimba import cli
from tests.errors import workshop as broken
from tests.errors.case import Case, check_said


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workshop")
    broken.build(folder)
    return folder


@pytest.fixture(autouse=True)
def somewhere(workshop, monkeypatch):
    """Commands run in the workshop, and no variable of whoever runs the tests has a say."""
    monkeypatch.chdir(workshop)
    for name in (
        "BIMBA_SCAN_BACKEND",
        "BIMBA_CONV_BACKEND",
        "BIMBA_VIDEO_BACKEND",
        "BIMBA_DEBUG",
        "HF_HOME",
        "HF_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def refused(workshop, monkeypatch, capfd):
    """Runs ``bimba`` in this process and looks at what it says; what lay there before is untouched."""

    def run(case: Case) -> str:
        before = sorted(path.name for path in workshop.iterdir())
        for name, value in case.env.items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        try:
            code = cli.main([word.format(workshop=workshop) for word in case.words])
        except SystemExit as stop:
            code = stop.code
        captured = capfd.readouterr()

        assert code == case.code, captured.err
        said = "\n".join(line for line in captured.err.splitlines() if not line.startswith(("usage:", "   ")))
        check_said(said, case.says)
        assert sorted(path.name for path in workshop.iterdir()) == before
        assert (workshop / "folder/notes.txt").read_text() == (workshop / "file").read_text() == "mine"
        return captured.out

    return run
