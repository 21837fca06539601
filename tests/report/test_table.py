from __future__ import annotations

import io

from rich.console import Console

from bimba.report.accuracy import score
from bimba.report.table import SCORE_COLUMNS, markdown_table, print_table, score_rows, write_markdown

ROWS = score_rows([score("retrieval", 240, 400, 0.25)])


def test_terminal_and_markdown_say_the_same(tmp_path):
    expected = ["retrieval", "60.0 %", "55.1 to 64.7 %", "25.0 %", "400"]
    assert len(ROWS) == 1
    assert ROWS[0] == expected
    out = io.StringIO()
    print_table("Scores", SCORE_COLUMNS, ROWS, Console(file=out, width=100))
    assert all(cell in out.getvalue() for cell in [*SCORE_COLUMNS, *expected])
    write_markdown(tmp_path / "table.md", "Scores", SCORE_COLUMNS, ROWS)
    assert (tmp_path / "table.md").read_text() == (
        "# Scores\n\n| Task | Accuracy | 95 % interval | Chance | Questions |\n| --- | ---: | ---: | ---: | ---: |\n"
        "| retrieval | 60.0 % | 55.1 to 64.7 % | 25.0 % | 400 |\n"
    )


def test_a_table_without_rows_is_its_head():
    assert markdown_table(("a", "b"), []) == "| a | b |\n| --- | ---: |\n"


def test_brackets_are_words():
    out = io.StringIO()
    print_table("Doctor", ("What", "State"), [["cuda", "pip install 'bimba[cuda]'"]], Console(file=out, width=100))
    assert "bimba[cuda]" in out.getvalue()
