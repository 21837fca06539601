"""Step [4] by a strided 3-D convolution: each query is refined by the tokens around it, and by no others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bimba.model.compressor._base import Compressor, Product, check_sizes
from bimba.model.mamba import RMSNorm
from bimba.model.queries import query_sides
from bimba.types import BimbaError


class ConvCompressor(Compressor):
    """queries + out_proj(gelu(conv(in_proj(norm(tokens))))), the convolution's window in the middle of a query's cell.

    The stride is what one query stands for: T // T' frames, and ceil(H / H') rows and columns. So the weights fit any
    number of queries, up to the size of the window.

    Args:
        hidden_size: C, of tokens and queries.
        kernel: (frames, rows = columns) of the window.
        channels: D inside; None: C / 4.
    """

    def __init__(self, hidden_size: int, kernel: Sequence[int] = (5, 3), channels: int | None = None) -> None:
        super().__init__(hidden_size)
        if isinstance(kernel, str) or not isinstance(kernel, Sequence) or len(kernel) != 2:
            raise BimbaError(f"compressor option kernel must be [frames, rows], such as [5, 3], received {kernel!r}.")
        width = max(1, hidden_size // 4) if channels is None else channels
        check_sizes(**{"kernel[0]": kernel[0], "kernel[1]": kernel[1], "channels": width})
        self.kernel = (kernel[0], kernel[1], kernel[1])
        self.norm = RMSNorm(hidden_size)
        self.in_proj = nn.Linear(hidden_size, width)
        self.conv = nn.Conv3d(width, width, self.kernel)
        self.out_proj = nn.Linear(width, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's initialisation, and a zero out_proj: a fresh compressor adds nothing to the queries."""
        for module in (self.in_proj, self.conv):
            module.reset_parameters()
        nn.init.ones_(self.norm.weight)
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, space_time_tokens: Tensor, queries: Tensor, question: Tensor | None = None) -> Tensor:
        """(B, T, H, W, C), (B, T', Q', C) -> (B, T', Q', C) in the queries' dtype, computed in the weights'.

        Raises:
            BimbaError: also for a stride larger than the window: some tokens would be read by no query.
        """
        self.check(space_time_tokens, queries, question)
        dtype, sizes = self.dtype(), space_time_tokens.shape[1:4]
        counts = (queries.shape[1], *query_sides(sizes[1], sizes[2], queries.shape[2]))
        strides = (sizes[0] // counts[0], *(-(-size // count) for size, count in zip(sizes[1:], counts[1:])))
        if any(stride > window for stride, window in zip(strides, self.kernel)):
            raise BimbaError(
                f"compressor conv: one query stands for {strides} frames, rows and columns, more than the window of "
                f"{self.kernel}, so that some tokens would be read by no query. Train it with a larger kernel, such as "
                f"[{strides[0]}, {max(strides[1:])}]."
            )
        x = self.in_proj(self.norm(space_time_tokens.to(dtype))).permute(0, 4, 1, 2, 3)  # (B, D, T, H, W)
        margins: list[int] = []  # of the last axis first; a negative one cuts off frames that fill no group
        for size, count, stride, window in zip(sizes, counts, strides, self.kernel):
            before = (window - stride) // 2
            margins[:0] = [before, (count - 1) * stride + window - size - before]
        y = F.conv3d(F.pad(x, margins), self.conv.weight, self.conv.bias, strides)  # (B, D, T', H', W')
        change = self.out_proj(F.gelu(y).flatten(3).permute(0, 2, 3, 1))
        return (queries.to(dtype) + change).to(queries.dtype)

    def products(self, grid: tuple[int, int, int], queries: tuple[int, int]) -> Iterator[Product]:
        """As of every compressor."""
        num_queries = prod(queries)
        yield self.in_proj.weight, torch.Size(grid).numel()
        yield self.conv.weight, num_queries
        yield self.out_proj.weight, num_queries


COMPRESSOR = ConvCompressor
