"""Images of any size: which tiles, which tokens, in which order. The original's numbers are in tests/golden."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llava_onevision.modeling_llava_onevision import unpad_image

from bimba.model.anyres import AnyRes
from bimba.types import BimbaError

SMALL = AnyRes(side=10, patch_grid=2)
REAL = AnyRes(side=384, patch_grid=27)


def features(anyres: AnyRes, image_size: tuple[int, int]) -> torch.Tensor:
    """(tiles, H, W, 1): the whole image -1, the others numbered as one reads the grid, row by row."""
    rows, columns = (n * anyres.patch_grid for n in anyres.tile_grid(image_size))
    grid = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
    n = anyres.patch_grid
    tiles = grid.unflatten(1, (-1, n)).unflatten(0, (-1, n)).transpose(1, 2).flatten(0, 1)  # (rows * columns, n, n)
    return torch.cat([torch.full((1, n, n), -1.0), tiles])[..., None]


def pack(anyres: AnyRes, image_size: tuple[int, int]) -> list[float]:
    return anyres.pack(features(anyres, image_size), torch.tensor([-9.0]), image_size).squeeze(-1).tolist()


@pytest.mark.parametrize(
    ("image_size", "rows_and_columns"),
    [
        ((10, 10), (1, 1)),
        ((3, 3), (1, 1)),
        ((20, 10), (1, 2)),
        ((10, 20), (2, 1)),
        ((1000, 1000), (6, 6)),
        ((1000, 100), (1, 6)),
        ((100, 1000), (6, 1)),
    ],
)
def test_the_grid_that_keeps_most_of_the_image(image_size, rows_and_columns):
    assert SMALL.tile_grid(image_size) == rows_and_columns


def test_of_equally_good_grids_the_first_is_taken():
    wide_first = AnyRes(10, 2, pinpoints=[[20, 10], [10, 20]])
    tall_first = AnyRes(10, 2, pinpoints=[[10, 20], [20, 10]])
    assert (wide_first.tile_grid((10, 10)), tall_first.tile_grid((10, 10))) == ((1, 2), (2, 1))


def test_tiles_are_read_as_one_picture():
    assert pack(SMALL, (20, 20)) == [
        *[-1] * 4,
        *[0, 1, 2, 3, -9],
        *[4, 5, 6, 7, -9],
        *[8, 9, 10, 11, -9],
        *[12, 13, 14, 15, -9],
    ]


def test_borders_are_cut_off_on_both_sides():
    assert pack(SMALL, (20, 12)) == [*[-1] * 4, *[4, 5, 6, 7, -9], *[8, 9, 10, 11, -9]]
    assert pack(SMALL, (12, 20)) == [*[-1] * 4, *[1, 2, -9], *[5, 6, -9], *[9, 10, -9], *[13, 14, -9]]


def test_a_large_grid_is_shrunk():
    anyres = AnyRes(10, 2, max_tiles=1)
    assert pack(anyres, (20, 20)) == [*[-1] * 4, *[2.5, 4.5, -9], *[10.5, 12.5, -9]]
    # Two tiles in a row are sqrt(2) times too long each way: 2 // 1.41 rows of 4 // 1.41 patches.
    assert pack(anyres, (20, 10)) == [*[-1] * 4, *[2.5, 4.5, -9]]


def test_a_little_too_large_is_left_alone():
    # 11 tiles for 9: a side is 1.106 times too long; 10 tiles: 1.05.
    row = [[10 * n, 10] for n in (10, 11)]
    assert AnyRes(10, 2, row[:1]).num_tokens((100, 10)) == 4 + 2 * (20 + 1)
    assert AnyRes(10, 2, row[1:]).num_tokens((110, 10)) == 4 + 1 * (19 + 1)


def test_the_whole_image_alone_gets_one_newline():
    whole = torch.arange(4.0).view(1, 2, 2, 1)
    assert SMALL.pack(whole, torch.tensor([-9.0]), (8, 8)).squeeze(-1).tolist() == [0, 1, 2, 3, -9]


@pytest.mark.parametrize("anyres", [SMALL, AnyRes(10, 3, max_tiles=2)])
def test_the_number_of_tokens_is_that_of_the_tokens(anyres):
    for width in (1, 7, 10, 13, 29, 60, 333):
        for height in (1, 9, 10, 17, 44, 61, 5000):
            assert anyres.num_tokens((width, height)) == len(pack(anyres, (width, height))), (width, height)


def test_published_sizes():
    """Grids of 27 patches a side: 729 tokens for the whole image, then rows with a newline each."""
    assert REAL.num_tokens((384, 384)) == 729 + 27 * (27 + 1)
    assert REAL.num_tokens((640, 480)) == 729 + 40 * (54 + 1)
    assert REAL.num_tokens((1920, 1080)) == 729 + 60 * (108 + 1)  # 75 x 135 shrunk by 1.242


def test_borders_are_rounded_as_in_the_original():
    """1640 * (27 / 369) is 120 less a rounding error: the original cuts off two columns that transformers keeps."""
    rows, columns = (27 * n for n in REAL.tile_grid((1640, 369)))
    kept_by_transformers = unpad_image(torch.empty(1, rows, columns), (369, 1640)).shape[1:]
    assert REAL.num_tokens((1640, 369)) == 729 + 27 * (119 + 1)
    assert kept_by_transformers == (27, 121)


def test_wrong_number_of_tiles():
    with pytest.raises(BimbaError, match=r"3 tiles for an image of 20 x 20 pixels, which is cut into 1 \+ 2 x 2"):
        SMALL.pack(torch.zeros(3, 2, 2, 1), torch.zeros(1), (20, 20))


@pytest.mark.parametrize("image_size", [(0, 10), (10, -1), (10,), (10, 10, 3)])
def test_wrong_sizes(image_size):
    with pytest.raises(BimbaError, match=r"expected \(width, height\)"):
        SMALL.num_tokens(image_size)


@pytest.mark.parametrize("pinpoints", [[], [[15, 10]], [[10, 10], [10, 0]], [[10]]])
def test_grids_of_no_whole_tiles(pinpoints):
    with pytest.raises(BimbaError, match=r"image_grid_pinpoints holds .*multiples of the vision tower's 10 pixels"):
        AnyRes(10, 2, pinpoints)


def test_no_tile_to_keep():
    with pytest.raises(BimbaError, match="image_max_tiles is 0"):
        AnyRes(10, 2, max_tiles=0)
