"""How the chunked scan cuts its work: tiles along the sequence, blocks of samples and channels.

Positions come first and channels last, contiguous: inputs are viewed as (L, B, D) and (L, B, N). Inputs that are
(B, L, D) in memory, as the layers around the scan make them, are never copied as a whole.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bimba.ops.selective_scan.inputs import state_dtype

# Elements of one tile's buffer. On a CPU three such buffers should stay in the cache; elsewhere the Python loop over
# positions is what costs, so a block should be as wide as the inputs.
_TILE_ELEMENTS = {"cpu": 2**20}
_TILE_ELEMENTS_ELSEWHERE = 2**26
_MIN_TILE, _MAX_TILE = 16, 64  # positions


@dataclass(frozen=True)
class Tile:
    """A run of positions, and the outputs (queries) among them. What is read comes in the order of the scan."""

    number: int
    positions: slice
    queries: slice
    local: list[int]  # place of each query within the tile, in the order of the scan
    local_index: Tensor | None  # the same, (q,); None: every position is a query
    reverse: bool

    @property
    def size(self) -> int:
        return int(self.positions.stop - self.positions.start)

    def read(self, x: Tensor) -> Tensor:
        """(L, ...) -> (n, ...), contiguous."""
        return self._ordered(x[self.positions]).contiguous()

    def read_queries(self, x: Tensor) -> Tensor:
        """(Q, ...) -> (q, ...), contiguous."""
        return self._ordered(x[self.queries]).contiguous()

    def write(self, target: Tensor, value: Tensor) -> None:
        """(n, ...) into (L, ...)."""
        target[self.positions] = self._ordered(value)

    def write_queries(self, target: Tensor, value: Tensor) -> None:
        """(q, ...) into (Q, ...)."""
        target[self.queries] = self._ordered(value)

    def add(self, target: Tensor, value: Tensor) -> None:
        """(n, ...) added to (L, ...)."""
        target[self.positions] += self._ordered(value)

    def add_queries(self, target: Tensor, value: Tensor) -> None:
        """(q, ...) added to (Q, ...)."""
        target[self.queries] += self._ordered(value)

    def at_queries(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(n, ...) -> (q, ...); ``out`` may be used as memory."""
        if self.local_index is None:
            return x
        return torch.index_select(x, 0, self.local_index, out=None if out is None else out[: len(self.local)])

    def add_at_queries(self, x: Tensor, value: Tensor) -> None:
        """(q, ...) added to the queries of (n, ...)."""
        if self.local_index is None:
            x += value
        else:
            x.index_add_(0, self.local_index, value)

    def _ordered(self, x: Tensor) -> Tensor:
        return x.flip(0) if self.reverse else x


@dataclass(frozen=True)
class Block:
    """Samples ``b`` and channels ``d`` of the inputs: independent of all other blocks."""

    b: slice
    d: slice
    u: Tensor  # (L, b, d)
    delta: Tensor  # (L, b, d)
    A: Tensor  # (N, d)
    B: Tensor  # (L, b, N)
    C: Tensor  # (Q, b, N)
    D: Tensor | None  # (d,)
    bias: Tensor | None  # (d,)

    def read(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of one tile: u and delta with its bias (n, b, d), B (n, b, N), C (q, b, N), in the state's dtype."""
        dtype = self.A.dtype
        delta = tile.read(self.delta).to(dtype)
        if self.bias is not None:
            delta = delta + self.bias
        return tile.read(self.u).to(dtype), delta, tile.read(self.B).to(dtype), tile.read_queries(self.C).to(dtype)


class TiledInputs:
    """The scan's inputs, its tiles in the order of the scan, and its blocks."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        reverse: bool,
        query_index: Tensor | None,
    ) -> None:
        self.dtype = state_dtype(u, delta, A, B, C)
        self.device = u.device
        self.u, self.delta, self.B, self.C = (x.permute(2, 0, 1) for x in (u, delta, B, C))
        self.A = A.to(self.dtype).t().contiguous()
        self.D = None if D is None else D.to(self.dtype)
        self.bias = None if delta_bias is None else delta_bias.to(self.dtype)
        self.reverse = reverse
        self.query_index = query_index
        self.length, self.batch, self.channels = self.u.shape
        self.num_outputs = self.C.shape[0]
        self.num_states = A.shape[1]

        elements = _TILE_ELEMENTS.get(self.device.type, _TILE_ELEMENTS_ELSEWHERE)
        widest = elements // _MIN_TILE
        self.block_channels = max(1, min(self.channels, widest // self.num_states))
        self.block_batch = max(1, min(self.batch, widest // (self.num_states * self.block_channels)))
        width = self.block_batch * self.num_states * self.block_channels
        self.tile_size = max(1, min(self.length, _MAX_TILE, elements // width))

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    @cached_property
    def tiles(self) -> list[Tile]:
        """In the order of the scan."""
        known = None if self.query_index is None else self.query_index.tolist()
        tiles = [self._tile(number, known) for number in range(-(-self.length // self.tile_size))]
        return tiles[::-1] if self.reverse else tiles

    def _tile(self, number: int, known: list[int] | None) -> Tile:
        start = number * self.tile_size
        stop = min(start + self.tile_size, self.length)
        positions = slice(start, stop)
        if known is None:
            return Tile(number, positions, positions, list(range(stop - start)), None, self.reverse)
        queries = slice(bisect_left(known, start), bisect_left(known, stop))
        local = sorted(stop - 1 - p if self.reverse else p - start for p in known[queries])
        index = torch.tensor(local, dtype=torch.int64, device=self.device)
        return Tile(number, positions, queries, local, index, self.reverse)

    @cached_property
    def blocks(self) -> list[Block]:
        samples = self._cut(self.batch, self.block_batch)
        channels = self._cut(self.channels, self.block_channels)
        return [self._block(b, d) for b in samples for d in channels]

    def _block(self, b: slice, d: slice) -> Block:
        D, bias = (None if x is None else x[d] for x in (self.D, self.bias))
        return Block(b, d, self.u[:, b, d], self.delta[:, b, d], self.A[:, d], self.B[:, b], self.C[:, b], D, bias)

    @staticmethod
    def _cut(total: int, size: int) -> list[slice]:
        return [slice(start, min(start + size, total)) for start in range(0, total, size)]
