"""The rows of ``compressor.py --every``: each compressor of conf/model/compressor with its defaults, on one video.

They are different functions of the same space-time tokens, so nothing is compared but what they take and how many
tokens come out: 196 a frame from 27 x 27 patches, all 729 of ``none``. Operations are what the compressor says itself
(``Compressor.products``), for a forward pass. ``pool`` takes no time, as the queries, which all are given, are pooled.
"""

from __future__ import annotations

from functools import partial

import torch
from layer import GRID, run
from measure import extra_memory_mib, header, median_seconds, milliseconds
from torch import Tensor

from bimba.model.compressor import Compressor, build_compressor, names, reduction_of
from bimba.model.mamba import cast
from bimba.model.queries import PUBLISHED_ROWS, pool_queries


def main(frames: int, hidden_size: int, dtype: torch.dtype, backward: bool, repeats: int) -> int:
    tokens = torch.randn(1, frames, GRID, GRID, hidden_size, generator=torch.Generator().manual_seed(0)).to(dtype)
    pooled = {reduction: pool_queries(tokens, reduction).flatten(2, 3) for reduction in map(_reduction, names())}
    compressors = {name: _build(name, hidden_size, dtype) for name in names()}
    queries = {name: pooled[_reduction(name)] for name in names()}
    calls = {name: partial(run, one, tokens, queries[name], backward) for name, one in compressors.items()}
    for name, one in compressors.items():  # code that is loaded at first use is nobody's memory
        run(one, tokens[:, :1], queries[name][:, :1], backward)
    first = {name: extra_memory_mib(call) for name, call in calls.items()}
    times_s = median_seconds(calls, repeats, {name: time_s for name, (_, time_s) in first.items()})
    what = "forward + backward" if backward else "forward"
    size = f"{frames} frames, hidden size {hidden_size}"
    print(f"{header()}, {size}, {str(dtype).removeprefix('torch.')}, {what}")
    print(f"{'':14s}{'ms':>10s}{'peak MiB':>10s}{'tokens out':>12s}{'of':>8s}{'GFLOP forward':>15s}{'parameters':>13s}")
    for name, one in compressors.items():
        out, read = queries[name].shape[1:3].numel(), tokens.shape[1:4].numel()
        parameters = sum(p.numel() for p in one.parameters())
        row = f"{name:14s}{milliseconds(times_s[name]):>10s}{first[name][0]:10.0f}{out:12,d}{read:8,d}"
        print(f"{row}{operations(one, tokens, queries[name]) / 1e9:15.3g}{parameters:13,d}")
    return 0


def operations(compressor: Compressor, tokens: Tensor, queries: Tensor) -> float:
    """Of a forward pass."""
    _, frames, rows, columns, _ = tokens.shape
    counted = compressor.products((frames, rows, columns), (queries.shape[1], queries.shape[2]))
    return sum(2.0 * matrix.numel() * n if isinstance(matrix, Tensor) else n for matrix, n in counted)


def _build(name: str, hidden_size: int, dtype: torch.dtype) -> Compressor:
    torch.manual_seed(0)
    compressor = build_compressor({"name": name}, hidden_size)
    if compressor is None:
        raise TypeError(f"there is no compressor {name}")
    for parameter in compressor.parameters():
        if parameter.ndim > 1 and not parameter.any():  # what starts at zero hides what is computed
            torch.nn.init.normal_(parameter, std=0.02)
    cast(compressor, dtype)
    return compressor


def _reduction(name: str) -> tuple[int, int]:
    return reduction_of({"name": name}) or (1, PUBLISHED_ROWS)
