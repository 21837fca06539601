"""What is on the page, as HTML: templates with everything escaped, pictures inside them, no address of another host."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from bimba.app.models import Models
from bimba.app.sessions import Reading, Selected
from bimba.data.prompt import bare_options
from bimba.model.selection import SelectionMap
from bimba.report.selection_page import page
from bimba.report.selection_pictures import Drawn, colour_table, drawn, heat, jpeg, timeline
from bimba.types import Frames

THUMBNAIL = 256


def header(labels: Sequence[str], device: str) -> str:
    return _render("header.html", labels=labels, device=device)


def stages(reading: Reading | None, error: str | None = None) -> str:
    """What has been done with the video, or why nothing was."""
    return _render("stages.html", reading=reading, error=error)


def frames(reading: Reading | None, models: Models) -> str:
    """The frames of the video, under what each model selected of them."""
    return _render("frames.html", reading=reading, labels=[model.label for model in models.all])


def answers(reading: Reading | None, error: str | None = None) -> str:
    """The questions, newest first, with all answers."""
    return _render("answers.html", reading=reading, error=error, bare_options=bare_options)


def select(frames: Frames, selection: SelectionMap, facts: Mapping[str, Any]) -> Selected:
    """A map, drawn over its frames."""
    video = drawn(frames, selection)
    known = {name: fact for name, fact in facts.items() if fact is not None}
    return Selected(_under_heat(video), timeline(video).svg(), page(video, selection, known), known.get("question"))


def _under_heat(video: Drawn) -> list[tuple[float, str, str, float]]:
    """Of each frame its time, itself, its heat, and its share of all that was added; of the first map."""
    added = next(iter(video.maps.values()))
    level, shares = heat(added), added.sum((1, 2)) / (added.sum() or 1)
    colours = np.array(colour_table(), dtype=np.uint8)
    found = []
    for t, time_s in enumerate(video.times_s):
        strength = np.round(255 * level[t]).astype(np.uint8)
        pixels = np.dstack([colours[strength], strength])
        found.append((float(time_s), jpeg(video.pixels[t], THUMBNAIL), _png(pixels), float(shares[t])))
    return found


def _png(pixels: np.ndarray) -> str:
    """(height, width, 4) uint8 as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("bimba.app"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render(template: str, **values: Any) -> str:
    return str(_environment().get_template(template).render(**values))
