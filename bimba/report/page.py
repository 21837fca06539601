"""The report of an evaluation as pages: ``report.html``, one file that needs nothing else, and ``report.md``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from bimba.report.evaluation import Evaluation
from bimba.types import BimbaError

PICTURES = "report_files"  # beside report.md
NOTHING = "\N{EN DASH}"  # in a cell
MARKS = re.compile(r"([\\`*_{}\[\]()<>#+!|~&$])")  # what Markdown, or HTML in it, could read as more than text


def write_report(folder: Path, evaluation: Evaluation) -> None:
    """Writes ``report.html``, ``report.md`` and the pictures of the latter, in ``report_files/``.

    Raises:
        BimbaError: the folder cannot be written.
    """
    environment = page_environment(bounds=bounds, picture_name=picture_name)
    pictures = folder / PICTURES
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        overview = evaluation.overview()
        plots = {task.name: plot for task in evaluation.tasks if (plot := task.plot()) is not None}
        for plot in [*plots.values(), *([overview] if overview else [])]:
            (pictures / f"{plot.name}.png").write_bytes(plot.png())
        for task in evaluation.tasks:
            for example in task.examples:
                for i, frame in enumerate(example.frames):
                    (pictures / picture_name(task.name, example.doc_id, i)).write_bytes(frame.jpeg)
        for name in ("report.html", "report.md"):
            text = environment.get_template(name).render(
                evaluation=evaluation, run=evaluation.run, overview=overview, plots=plots, pictures=PICTURES
            )
            partial = folder / f"{name}.partial"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, folder / name)
    except OSError as error:
        raise BimbaError(f"The report cannot be written to {folder} ({error.strerror}); free some space.") from error


def picture_name(task: str, document: int, number: int) -> str:
    return f"{task}-{document}-{number}.jpg"


def plain(text: object) -> str:
    """Text for a line or a cell of Markdown, in which nothing is markup."""
    return MARKS.sub(r"\\\1", " ".join(str(text).split()))


def code_block(text: str) -> str:
    """Text as an indented block of Markdown, which nothing in it can end."""
    return "\n".join(f"    {line}" for line in text.splitlines()) if text.strip() else "    (empty)"


def percent(fraction: float | None) -> str:
    return NOTHING if fraction is None else f"{100 * fraction:.2f}"


def points(value: float | None) -> str:
    """What is from 0 to 100 already."""
    return NOTHING if value is None else f"{value:.2f}"


def bounds(low: float | None, high: float | None, scale: float = 100.0) -> str:
    return NOTHING if low is None or high is None else f"{scale * low:.1f} to {scale * high:.1f}"


def quantity(value: float | int | None) -> str:
    """Counts as they are, other numbers with three digits that count."""
    if value is None:
        return NOTHING
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def page_environment(**functions: Any) -> Environment:
    """The templates, with functions that they call by these names."""
    environment = Environment(
        loader=PackageLoader("bimba.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (plain, code_block, percent, points, quantity)
    environment.filters.update({function.__name__: function for function in filters})
    environment.globals.update(functions)
    return environment
