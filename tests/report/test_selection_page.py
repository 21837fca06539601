"""The folder that ``bimba map`` writes."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from bimba.model.selection import SelectionMap
from bimba.report.selection_page import write_selection
from bimba.report.selection_pictures import contact_sheet, drawn, heat, timeline
from bimba.types import BimbaError, Frames

T, H, W, QUERIES = 5, 2, 3, 4


def selection(directions=("forward", "backward"), scale=1.0) -> SelectionMap:
    per_query = scale * torch.rand(len(directions), QUERIES, T, H, W, generator=torch.Generator().manual_seed(0))
    return SelectionMap(
        directions=directions,
        total=per_query.mean(1),
        per_query=per_query,
        queries=torch.tensor([0, 3, 5, 7]),
        frames=torch.arange(T),
        query_grid=(2, 4),
        elsewhere=torch.full((len(directions),), 0.25),
    )


@pytest.fixture
def frames() -> Frames:
    pixels = np.random.default_rng(0).integers(0, 256, (T, 12, 18, 3), dtype=np.uint8)
    return Frames(pixels, np.arange(T) / 2, np.arange(T) * 4, 2.5, 20, 8.0, "film.mp4")


@pytest.fixture
def folder(frames, tmp_path):
    facts = {"video": "film.mp4", "question": "</script><b>Who?</b>", "answer": None}
    write_selection(tmp_path / "map", frames, selection(), facts)
    return tmp_path / "map"


def test_pictures_are_written(folder):
    for name in ("selection.png", "timeline.png"):
        assert Image.open(io.BytesIO((folder / name).read_bytes())).width > 300


def test_numbers_are_those_of_the_map(folder):
    numbers, total = json.loads((folder / "selection.json").read_text()), selection().total
    assert numbers["video"] == "film.mp4"
    assert "answer" not in numbers
    assert numbers["grid"] == [T, H, W]
    assert numbers["queries"] == {"of": 8, "looked_at": [0, 3, 5, 7]}
    assert numbers["from_other_tokens"] == {"forward": 0.25, "backward": 0.25}
    np.testing.assert_allclose(numbers["map"]["backward"], total[1], rtol=1e-5)
    np.testing.assert_allclose(numbers["per_frame"]["both"], total.sum((0, 2, 3)), rtol=1e-5)
    best = numbers["strongest"][0]
    t, row, column = np.unravel_index(int(total.sum(0).argmax()), (T, H, W))
    assert (best["frame"], best["time_s"], best["row"], best["column"]) == (4 * t, t / 2, row, column)


def test_the_page_holds_the_maps_and_needs_nothing_else(folder):
    page = (folder / "selection.html").read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|fetch\(""", page)
    assert "&lt;/script&gt;&lt;b&gt;Who?" in page
    data = json.loads(re.search(r"const data = (.*);\n", page)[1])
    assert len(data["frames"]) == len(data["times"]) == T
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in data["frames"])
    assert set(data["queries"]) == {"0", "3", "5", "7"}
    assert data["queryGrid"] == [2, 4, 2]
    levels = np.frombuffer(base64.b64decode(data["queries"]["5"]["forward"]), np.uint8).reshape(T, H, W)
    np.testing.assert_array_equal(levels, np.round(255 * heat(selection().per_query[0, 2].numpy())))
    assert re.findall(r'name="which" value="(\w+)"', page) == ["both", "forward", "backward"]


def test_of_one_direction_there_is_no_sum(frames, tmp_path):
    write_selection(tmp_path, frames, selection(("forward",)), {})
    assert list(json.loads((tmp_path / "selection.json").read_text())["map"]) == ["forward"]


def test_heat_is_from_nothing_to_the_strongest():
    values = np.arange(5001.0)
    levels = heat(values)
    assert levels[0] == 0
    assert levels[-6:].tolist() == [1.0] * 6  # a thousandth
    np.testing.assert_allclose(levels[1250], 0.5, rtol=1e-3)  # a quarter by the square root
    assert (heat(np.zeros((2, 3))) == 0).all()
    assert heat(np.eye(100)).max() == 1  # fewer than a thousandth, and still seen


def test_nothing_selected_is_drawn_too(frames):
    video = drawn(frames, selection(scale=0.0))
    assert contact_sheet(video).png().startswith(b"\x89PNG")
    assert timeline(video).png().startswith(b"\x89PNG")


def test_nothing_is_overwritten(frames, tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(BimbaError, match="exists already; give another --out"):
        write_selection(tmp_path, frames, selection(), {})
    with pytest.raises(BimbaError, match="cannot be written"):
        write_selection(tmp_path / "mine.txt" / "map", frames, selection(), {})
