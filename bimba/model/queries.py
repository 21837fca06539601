"""Step [4]: the query tokens, pooled from the space-time tokens they will then be refined by."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bimba.types import BimbaError

PUBLISHED_ROWS = 2  # patch rows and columns per query in the published model, which rounds up: 27 become 14


def query_grid(num_frames: int, patch_grid: int, reduction: tuple[int, int]) -> tuple[int, int]:
    """(T', H' = W'): the grid of queries for a video.

    Args:
        reduction: (frames, rows): how many frames, and patch rows and columns, one query stands for.

    Raises:
        BimbaError: fewer frames than one query stands for, or rows that do not divide the grid (see :func:`_side`).
    """
    frames = reduction[0]
    if num_frames < frames:
        raise BimbaError(
            f"Got {num_frames} frames, but one query averages {frames} (temporal_pooling, or the compressor's "
            "reduction); read more frames or load the model with a smaller temporal_pooling."
        )
    return num_frames // frames, _side(patch_grid, reduction)


def pool_queries(tokens: Tensor, reduction: tuple[int, int] = (1, PUBLISHED_ROWS)) -> Tensor:
    """Each frame is pooled in space, then groups of frames are averaged (paper, section 3.2).

    Two rows and columns become one bilinearly, and an odd one at the end counts: the published pooling, from n to
    ceil(n / 2). Any other number of them is averaged. Frames that do not fill a last group enter the scan but no query,
    as in the original.

    Args:
        tokens: (B, T, H, W, C) projected space-time tokens.
        reduction: (frames, rows), as for :func:`query_grid`.

    Returns:
        (B, T', H', W', C) queries with T' = T // frames, H' and W' = ceil(H / rows) and ceil(W / rows).

    Raises:
        BimbaError: as :func:`query_grid`.
    """
    group, rows = reduction
    num_groups, height = query_grid(tokens.shape[1], tokens.shape[2], reduction)
    width = _side(tokens.shape[3], reduction)
    if rows == 1:
        queries = tokens
    else:
        frames = tokens.flatten(0, 1).permute(0, 3, 1, 2)  # (B*T, C, H, W)
        if rows == PUBLISHED_ROWS:
            pooled = F.interpolate(frames, size=(height, width), mode="bilinear", align_corners=False)
        else:
            pooled = F.avg_pool2d(frames, rows)
        queries = pooled.permute(0, 2, 3, 1).unflatten(0, tokens.shape[:2])  # (B, T, H', W', C)
    if group == 1:
        return queries
    return queries[:, : num_groups * group].unflatten(1, (num_groups, group)).mean(2)


def _side(patches: int, reduction: tuple[int, int]) -> int:
    """H' (or W') of H (or W) patches. The published 2 rounds up; any other number has to divide them."""
    rows = reduction[1]
    if rows == PUBLISHED_ROWS:
        return (patches + 1) // 2
    if patches % rows:
        fitting = [n for n in range(1, patches + 1) if patches % n == 0 or n == PUBLISHED_ROWS]
        raise BimbaError(
            f"The compressor's reduction is {list(reduction)}: {rows} rows per query, which do not divide the "
            f"{patches} patch rows or columns of a frame; give one of {', '.join(map(str, fitting))} as its second "
            "number."
        )
    return patches // rows


def query_sides(rows: int, columns: int, num_queries: int) -> tuple[int, int]:
    """(H', W') of the Q' queries of one frame, for whoever has their number only: the one pooling that makes so many.

    Raises:
        BimbaError: no pooling makes so many.
    """
    for per_query in range(1, max(rows, columns) + 1):
        sides = -(-rows // per_query), -(-columns // per_query)
        if sides[0] * sides[1] == num_queries:
            return sides
    raise BimbaError(
        f"The compressor got {num_queries} queries per frame, which no pooling makes of {rows} x {columns} patches; "
        "give it what pool_queries returns."
    )
