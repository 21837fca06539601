"""Step [3] for images: any size to tiles, tiles to tokens (LLaVA's ``anyres_max_9`` with ``spatial_unpad``).

An image is read twice: whole, resized to the vision tower's square, and in detail, as the tiles of a grid of such
squares into which it was fitted with black borders. What the language model reads of it::

    whole image (no newlines) | first row of patches of all tiles, newline | second row, newline | ...

The borders are cut off again, patch row by patch row, and a grid of much more than ``max_tiles`` tiles is shrunk to
that size. Images pass neither pooling nor compressor. Sizes are (width, height) throughout, as in the original.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_utils import select_best_resolution

from bimba.model.splice import add_newlines
from bimba.types import BimbaError

ImageSize = Sequence[int]  # (width, height) in pixels
_LARGEST_GRID = 6  # tiles to a side, where a checkpoint does not list its grids
_TOLERATED = 1.1  # how much longer than sqrt(max_tiles) tiles a side may be before the grid is shrunk


@dataclass(frozen=True)
class AnyRes:
    """How images of any size become tiles and tokens.

    Args:
        side: height and width of a tile in pixels.
        patch_grid: patch rows (= columns) of a tile.
        pinpoints: (width, height) in pixels of every grid an image may be fitted into; of equally good ones the
            first is taken. None: all from 1 x 1 to 6 x 6 tiles.
        max_tiles: how many tiles' worth of tokens a grid may keep; None raises.

    Raises:
        BimbaError: a grid that is not made of whole tiles, or no grid, or fewer than one tile to keep.
    """

    side: int
    patch_grid: int
    pinpoints: Sequence[Sequence[int]] | None = None
    max_tiles: int | None = 9

    def __post_init__(self) -> None:
        if self.max_tiles is None:
            raise BimbaError(
                "This model takes videos only: it was not trained on images that are cut into tiles (image_max_tiles "
                "is null; the original says image_aspect_ratio: anyres_max_9)."
            )
        if self.max_tiles < 1:
            raise BimbaError(f"image_max_tiles is {self.max_tiles}; expected 1 or more tiles.")
        for size in self.resolutions or [()]:
            if len(size) != 2 or min(size) < 1 or size[0] % self.side or size[1] % self.side:
                raise BimbaError(
                    f"image_grid_pinpoints holds {list(size)}; expected at least one [width, height], both multiples "
                    f"of the vision tower's {self.side} pixels."
                )

    @property
    def resolutions(self) -> list[tuple[int, ...]]:
        """``pinpoints``, spelled out; columns vary slowest, as in the original's list."""
        if self.pinpoints is not None:
            return [tuple(size) for size in self.pinpoints]
        numbers = range(1, _LARGEST_GRID + 1)
        return [(columns * self.side, rows * self.side) for columns in numbers for rows in numbers]

    def tile_grid(self, image_size: ImageSize) -> tuple[int, int]:
        """(rows, columns) of the tiles that an image is cut into.

        Raises:
            BimbaError: not two positive numbers.
        """
        if len(image_size) != 2 or min(image_size) < 1:
            raise BimbaError(f"Got the image size {tuple(image_size)}; expected (width, height) in pixels.")
        width, height = image_size
        # transformers counts (height, width).
        best = select_best_resolution((height, width), [(h, w) for w, h in self.resolutions])
        return best[0] // self.side, best[1] // self.side

    @property
    def num_tokens_whole(self) -> int:
        """How many tokens an image becomes that is given as a single tile."""
        return self.patch_grid**2 + 1

    def num_tokens(self, image_size: ImageSize) -> int:
        """How many tokens an image of this size becomes.

        Raises:
            BimbaError: not two positive numbers.
        """
        rows, columns = self._shrunk(*self._unpadded(image_size))
        return self.patch_grid**2 + rows * (columns + 1)

    def pack(self, features: Tensor, newline: Tensor, image_size: ImageSize) -> Tensor:
        """The features of an image's tiles in the order in which the language model reads them.

        Args:
            features: (tiles, H, W, C), the whole image first. A single tile is taken as the whole image alone and
                gets one newline behind it.
            newline: (C,) the learned ``image_newline``.

        Returns:
            (tokens, C).

        Raises:
            BimbaError: the number of tiles is not that of an image of this size.
        """
        whole, tiles = features[0].flatten(0, 1), features[1:]
        if len(tiles) == 0:
            return add_newlines(features[:1], newline, "one_token")
        grid = self.tile_grid(image_size)
        if len(tiles) != grid[0] * grid[1]:
            raise BimbaError(
                f"Got {len(features)} tiles for an image of {image_size[0]} x {image_size[1]} pixels, which is cut "
                f"into 1 + {grid[0]} x {grid[1]}. Prepare images with BimbaProcessor.image_tiles, and give their "
                "sizes as (width, height)."
            )
        detail = tiles.unflatten(0, grid).permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)  # (C, rows, columns)
        rows, columns = self._unpadded(image_size)
        top, left = (detail.shape[1] - rows) // 2, (detail.shape[2] - columns) // 2
        detail = detail[:, top : top + rows, left : left + columns]
        if (shrunk := self._shrunk(rows, columns)) != (rows, columns):
            detail = F.interpolate(detail[None], shrunk, mode="bilinear", align_corners=False)[0]
        return torch.cat([whole, add_newlines(detail.permute(1, 2, 0)[None], newline, "grid")])

    def _unpadded(self, image_size: ImageSize) -> tuple[int, int]:
        """(rows, columns) of the patches that are left when the borders are cut off."""
        rows, columns = (tiles * self.patch_grid for tiles in self.tile_grid(image_size))
        width, height = image_size
        # Product of a quotient, rounded down: the original's order of operations. transformers' ``unpad_image`` rounds
        # to seven digits first and so keeps a row more of some images.
        if width / height > columns / rows:
            return rows - (rows - int(height * (columns / width))) // 2 * 2, columns
        return rows, columns - (columns - int(width * (rows / height))) // 2 * 2

    def _shrunk(self, rows: int, columns: int) -> tuple[int, int]:
        """(rows, columns) of patches after shrinking to ``max_tiles`` tiles' worth, if they are too many."""
        max_tiles = self.max_tiles or 0  # never None here
        ratio = math.sqrt(rows * columns / (max_tiles * self.patch_grid**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > _TOLERATED else (rows, columns)
