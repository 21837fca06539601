"""The findings of ``bimba data check`` as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from bimba.report.data_check import histogram, source_rows, verdict
from bimba.report.files import write_bytes
from bimba.types import BimbaError

if TYPE_CHECKING:
    from bimba.data.check import Findings

_LISTED = 1000  # troubles of a kind
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: .15em .8em; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
.bar { background: #4878a8; height: .9em; }
.verdict { padding: .6em 1em; background: #eef5ee; border-left: 4px solid #4a8a4a; }
.wrong { background: #f8eeee; border-color: #b04a4a; }
li { overflow-wrap: anywhere; }
"""


def write_html(path: Path, found: Findings) -> None:
    """Writes the page; an older one is replaced.

    Raises:
        BimbaError: it cannot be written.
    """
    try:
        write_bytes(path, page(found).encode())
    except OSError as error:
        raise BimbaError(f"{path} cannot be written ({error.strerror or error}); give another --html.") from error


def page(found: Findings) -> str:
    wrong = "wrong" if found.num_troubles else ""
    files = [[name, f"{rows:,}"] for name, rows in found.files.items()]
    parts = [
        f'<p class="verdict {wrong}">{escape(verdict(found))}</p>',
        f"<p>{found.num_read:,} of {found.num_media:,} media decoded.</p>",
        _table("Rows", ("Source", "Rows", "Questions", "Media"), source_rows(found)),
        _lengths(found),
        *(_troubles(found, kind, number) for kind, number in found.num_troubles.items()),
        _table("Annotation files", ("File", "Rows taken"), files),
    ]
    title = f"Data check of {escape(found.name)}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2>\n<table><tr>{head}</tr>\n{body}</table>"


def _lengths(found: Findings) -> str:
    bars = histogram(found.lengths)
    most = max((count for *_, count in bars), default=1)
    rows = "\n".join(
        f'<tr><td>{first:,} to {last:,}</td><td><div class="bar" style="width: {20 * count / most:.2f}em"></div></td>'
        f"<td>{count:,}</td></tr>"
        for first, last, count in bars
    )
    title = f"Tokens of {len(found.lengths):,} samples"
    about = f"Tokenizer: {escape(found.tokenizer)}. The limit is {found.max_length:,}."
    return f"<h2>{title}</h2>\n<p>{about}</p>\n<table>{rows}</table>"


def _troubles(found: Findings, kind: str, number: int) -> str:
    listed = [trouble.what for trouble in found.troubles if trouble.kind == kind][:_LISTED]
    items = "\n".join(f"<li>{escape(what)}</li>" for what in listed)
    more = f"<p>and {number - len(listed):,} more</p>" if number > len(listed) else ""
    return f"<h2>{escape(kind)}: {number:,}</h2>\n<ul>{items}</ul>{more}"
