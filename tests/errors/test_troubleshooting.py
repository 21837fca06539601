"""docs/troubleshooting.md quotes what is really said."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.errors.workshop import ROOT

ROWS = re.findall(r"^\| `([^|]+)` \| ([^|]+) \|$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)


def _strings() -> list[str]:
    """Every text that the tests beside this one look for in a message."""
    found = []
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path != Path(__file__):
            found += [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
    return [" ".join(text.split()) for text in found if isinstance(text, str)]


def test_there_is_a_row_for_most_of_what_goes_wrong():
    assert len(ROWS) >= 30
    assert len({symptom for symptom, _ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("symptom", "remedy"), ROWS)
def test_what_it_quotes_is_tested(symptom, remedy):
    """An ellipsis stands for what differs."""
    for piece in symptom.split("..."):
        assert any(piece.strip() in text for text in _strings()), piece
    assert remedy.strip().endswith(".")
