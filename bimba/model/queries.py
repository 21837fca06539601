"""Step [4]: the query tokens, pooled from the space-time tokens they will then be refined by."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bimba.types import BimbaError


def query_grid(num_frames: int, patch_grid: int, temporal_pooling: int) -> tuple[int, int]:
    """(T', H' = W'): the grid of queries for a video.

    Raises:
        BimbaError: fewer frames than one frame of queries averages.
    """
    if num_frames < temporal_pooling:
        raise BimbaError(
            f"Got {num_frames} frames, but temporal_pooling averages {temporal_pooling} at a time; "
            "read more frames or load the model with a smaller temporal_pooling."
        )
    return num_frames // temporal_pooling, (patch_grid + 1) // 2


def pool_queries(tokens: Tensor, temporal_pooling: int = 1) -> Tensor:
    """Bilinear pooling of each frame to ceil(n/2), then an average over groups of frames (paper, section 3.2).

    Frames that do not fill a last group enter the scan but no query, as in the original.

    Args:
        tokens: (B, T, H, W, C) projected space-time tokens.

    Returns:
        (B, T', H', W', C) queries with T' = T // temporal_pooling, H' = ceil(H/2), W' = ceil(W/2).

    Raises:
        BimbaError: T is smaller than ``temporal_pooling``.
    """
    num_groups, _ = query_grid(tokens.shape[1], tokens.shape[2], temporal_pooling)
    rows, columns = ((n + 1) // 2 for n in tokens.shape[2:4])
    frames = tokens.flatten(0, 1).permute(0, 3, 1, 2)  # (B*T, C, H, W)
    pooled = F.interpolate(frames, size=(rows, columns), mode="bilinear", align_corners=False)
    queries = pooled.permute(0, 2, 3, 1).unflatten(0, tokens.shape[:2])  # (B, T, H', W', C)
    if temporal_pooling == 1:
        return queries
    return queries[:, : num_groups * temporal_pooling].unflatten(1, (num_groups, temporal_pooling)).mean(2)
