from __future__ import annotations

import json

import numpy as np
import pytest

from bimba.data.sampling import frames_in_window, uniform_indices
from bimba.types import BimbaError
from tests.data.files import GOLDEN

ROWS = json.loads((GOLDEN / "frame_sampling.json").read_text())
FORCED = [
    r
    for r in ROWS["training"] + ROWS["inference"]
    if r["force_sample"] and r.get("frames_upbound") != 0 and "error" not in r
]


@pytest.mark.parametrize("row", FORCED, ids=lambda r: f"{r['video']}-{len(r['frame_idx'])}")
def test_agrees_with_the_original_where_it_samples_uniformly(row):
    assert uniform_indices(row["total_frame_num"], len(row["frame_idx"])).tolist() == row["frame_idx"]


@pytest.mark.parametrize(("sizes", "expected"), ROWS["np_linspace_int"].items())
def test_agrees_with_linspace(sizes, expected):
    total, samples = map(int, sizes.split(":"))
    indices = uniform_indices(total, samples)
    assert indices.tolist() == expected
    assert indices.dtype == np.int64


@pytest.mark.parametrize(("total", "samples"), [(0, 4), (10, 0), (10, -1)])
def test_nothing_to_sample(total, samples):
    with pytest.raises(BimbaError, match="at least one"):
        uniform_indices(total, samples)


SPANS = np.stack([np.arange(80) / 8, (np.arange(80) + 1) / 8], axis=1)  # 10 s, 8 frames a second


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [
        (None, None, (0, 80)),
        (0, 10, (0, 80)),
        (2, 3, (16, 24)),
        (2, None, (16, 80)),
        (None, 0.01, (0, 1)),
        (9.99, None, (79, 80)),
        (2.05, 2.06, (16, 17)),  # between two frames: the one on screen
        (5, 10.4, (40, 80)),  # an annotation that was rounded up
    ],
)
def test_window(start_s, end_s, expected):
    assert frames_in_window(SPANS, start_s, end_s) == expected


@pytest.mark.parametrize(
    ("start_s", "end_s"), [(-1, 3), (10, 12), (11, None), (3, 3), (4, 3), (0, 11), (float("nan"), 3), (0, float("nan"))]
)
def test_window_outside_the_video(start_s, end_s):
    with pytest.raises(BimbaError, match=r"does not lie in the video, which lasts 10\.00 s"):
        frames_in_window(SPANS, start_s, end_s)
