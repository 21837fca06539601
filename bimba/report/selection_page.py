"""The folder that ``bimba map`` writes: two pictures, a page with a scrubber, and the numbers.

::

    selection.png    frames under heat          timeline.png     what each frame added
    selection.html   both, to look through      selection.json   the map itself
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bimba.report.files import write_bytes, write_json
from bimba.report.selection_pictures import Drawn, by_name, colour_table, contact_sheet, drawn, heat, jpeg, timeline
from bimba.types import BimbaError

if TYPE_CHECKING:
    from bimba.model.selection import SelectionMap
    from bimba.types import Frames

FRAME_SIDE = 384  # pixels of a frame in the page
QUERY_BYTES = 4_000_000  # of the maps of single queries in the page
STRONGEST = 20  # tokens listed by name


def check_new(folder: Path) -> None:
    """Raises BimbaError unless a map can be written there: nothing, or an empty folder."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BimbaError(f"{folder} exists already; give another --out, or remove it.")


def write_selection(folder: Path, frames: Frames, selection: SelectionMap, facts: Mapping[str, Any]) -> None:
    """Writes all four files.

    Args:
        facts: what the page says of it, name -> text; None is left out.

    Raises:
        BimbaError: the folder has something in it, or cannot be written.
    """
    check_new(folder)
    video = drawn(frames, selection)
    known = {name: fact for name, fact in facts.items() if fact is not None}
    try:
        write_bytes(folder / "selection.png", contact_sheet(video).png())
        write_bytes(folder / "timeline.png", timeline(video).png())
        html = page(video, selection, known).encode(errors="backslashreplace")  # the video's name may be no UTF-8
        write_bytes(folder / "selection.html", html)
        write_json(folder / "selection.json", numbers(video, selection, known))
    except OSError as error:
        raise BimbaError(f"{folder} cannot be written ({error.strerror or error}); give another --out.") from error


def numbers(video: Drawn, selection: SelectionMap, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the pictures show, for programs; of maps six digits."""
    first = next(iter(video.maps.values()))
    strongest = np.argsort(first, axis=None)[::-1][:STRONGEST]
    return {
        **facts,
        "frames": video.indices.tolist(),
        "times_s": [round(float(time), 3) for time in video.times_s],
        "grid": list(first.shape),
        "queries": {"of": math.prod(selection.query_grid), "looked_at": selection.queries.tolist()},
        "from_other_tokens": dict(zip(selection.directions, _digits(selection.elsewhere.numpy()))),
        "per_frame": {name: _digits(values.sum((1, 2))) for name, values in video.maps.items()},
        "strongest": [
            {
                "frame": int(video.indices[t]),
                "time_s": round(float(video.times_s[t]), 3),
                "row": int(row),
                "column": int(column),
                "added": _digits(first[t, row, column]),
            }
            for t, row, column in zip(*np.unravel_index(strongest, first.shape))
        ],
        "map": {name: _digits(values) for name, values in video.maps.items()},
    }


def page(video: Drawn, selection: SelectionMap, facts: Mapping[str, Any]) -> str:
    """The page: needs no other file and no network."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("bimba.report"), autoescape=True, undefined=StrictUndefined)
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(selection.directions, selection.elsewhere))
    data = _page_data(video, selection)
    return environment.get_template("selection.html").render(
        facts=facts,
        # Within a script nothing ends it but "</", and JSON may write the slash's neighbour as it likes.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        names=list(video.maps),
        num_frames=len(video.pixels),
        timeline=timeline(video).svg(),
        shares=shares,
        looked_at=len(selection.queries),
        queries=math.prod(selection.query_grid),
        in_page=len(data["queries"]),
    )


def _page_data(video: Drawn, selection: SelectionMap) -> dict[str, Any]:
    T, H, W = next(iter(video.maps.values())).shape
    room = max(1, QUERY_BYTES // (len(video.maps) * T * H * W))
    kept = np.unique(np.linspace(0, len(selection.queries) - 1, room, dtype=int))
    queries = selection.per_query.numpy()
    groups, per_frame = selection.query_grid
    columns = round(math.sqrt(per_frame * W / H))
    return {
        "grid": [T, H, W],
        "size": [video.pixels.shape[2], video.pixels.shape[1]],
        "frames": [jpeg(frame, FRAME_SIDE) for frame in video.pixels],
        "times": [round(float(time), 2) for time in video.times_s],
        "maps": {name: _levels(values) for name, values in video.maps.items()},
        "queryGrid": [groups, per_frame, columns if columns and per_frame % columns == 0 else per_frame],
        "queries": {int(selection.queries[k]): _named_levels(selection, queries[:, k]) for k in kept},
        "colours": colour_table(),
    }


def _named_levels(selection: SelectionMap, values: np.ndarray) -> dict[str, str]:
    return {name: _levels(of_one) for name, of_one in by_name(selection, values).items()}


def _levels(values: np.ndarray) -> str:
    """Heat in 256 steps, base64."""
    return base64.b64encode(np.round(255 * heat(values)).astype(np.uint8).tobytes()).decode()


def _digits(values: np.ndarray) -> Any:
    return np.vectorize(lambda value: float(f"{value:.6g}"), otypes=[float])(values).tolist()
