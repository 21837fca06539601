"""How the chunked scan cuts its work: blocks of one direction, some samples, some channels; each block's sequence into
sections, each section into tiles.

Positions come first and channels last, contiguous: rows (B, L, D) are viewed as (L, B, D) and never copied as a whole.
Nothing is flipped either: a reversed scan walks the same memory the other way.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import torch
from torch import Tensor

from bimba.ops.selective_scan.inputs import Scan

# Elements of one tile's buffer. On a CPU three such buffers should stay in the cache; elsewhere the Python loop over
# positions is what costs, so a block should be as wide as the inputs.
_TILE_ELEMENTS = {"cpu": 2**20}
_TILE_ELEMENTS_ELSEWHERE = 2**26
_TILE = 64  # positions: shorter ones wait for Python, longer ones fall out of the cache
_SECTION = 8  # tiles: what depends on single positions only is computed for so many at a time


@dataclass(frozen=True)
class Run:
    """Consecutive positions, and the outputs (queries) among them."""

    positions: slice
    queries: slice  # of the (Q, ...) tensors
    local: list[int]  # place of each query among the positions
    index: Tensor | None  # the same, (q,); None: every position is a query

    @property
    def size(self) -> int:
        return int(self.positions.stop - self.positions.start)

    def at_queries(self, x: Tensor, memory: Tensor) -> Tensor:
        """(n, ...) -> (q, ...); lies in ``memory`` (n, ...), or is x itself."""
        return x if self.index is None else torch.index_select(x, 0, self.index, out=memory[: len(self.local)])

    def add_at_queries(self, x: Tensor, value: Tensor) -> None:
        """(q, ...) added to the queries of (n, ...)."""
        if self.index is None:
            x += value
        else:
            x.index_add_(0, self.index, value)


@dataclass(frozen=True)
class Tile(Run):
    """What is computed between two looks at the state. Positions and queries are counted from the section's first."""

    number: int  # in the order of the scan, over all sections


@dataclass(frozen=True)
class Section(Run):
    """What is read from the inputs, and written to the outputs, at a time."""

    tiles: list[Tile]  # in the order of the scan


@dataclass(frozen=True)
class Block:
    """One direction ``r``, samples ``b`` and channels ``d`` of the inputs: independent of all other blocks."""

    r: int
    b: slice
    d: slice
    scan: Scan

    @cached_property
    def reverse(self) -> bool:
        return self.scan.is_reverse(self.r)

    @cached_property
    def u(self) -> Tensor:
        """(L, b, d), in its own dtype; so are delta, B and C."""
        return self.rows(self.scan.u)

    @cached_property
    def delta(self) -> Tensor:
        """(L, b, d)."""
        return self.rows(self.scan.delta)

    @cached_property
    def B(self) -> Tensor:
        """(L, b, N)."""
        return self.states(self.scan.B)

    @cached_property
    def C(self) -> Tensor:
        """(Q, b, N)."""
        return self.states(self.scan.C)

    @cached_property
    def A(self) -> Tensor:
        """(N, d), contiguous, in the state's dtype."""
        return self.scan.A[self.r, self.d].t().to(self.scan.dtype).contiguous()

    @cached_property
    def D(self) -> Tensor | None:
        """(d,), in the state's dtype; so is the bias."""
        return None if self.scan.D is None else self.scan.D[self.r, self.d].to(self.scan.dtype)

    @cached_property
    def bias(self) -> Tensor | None:
        """(d,)."""
        return None if self.scan.delta_bias is None else self.scan.delta_bias[self.r, self.d].to(self.scan.dtype)

    def rows(self, x: Tensor) -> Tensor:
        """This block's part of (R, B, L, D), viewed as (L, b, d); L may be Q."""
        return x[self.r, self.b, :, self.d].transpose(0, 1)

    def states(self, x: Tensor) -> Tensor:
        """This block's part of (R, B, L, N), viewed as (L, b, N); L may be Q."""
        return x[self.r, self.b].transpose(0, 1)

    def state(self, x: Tensor) -> Tensor:
        """This block's part of (R, B, D, N), viewed as (b, N, d)."""
        return x[self.r, self.b, self.d].transpose(1, 2)

    def initial_state(self) -> Tensor:
        """(b, N, d)."""
        if self.scan.initial_state is not None:
            return self.state(self.scan.initial_state)
        return self.A.new_zeros(self.u.shape[1], *self.A.shape)


class Cut:
    """The sizes of blocks and tiles, which depend on shapes alone, and the blocks and tiles themselves."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self.directions, self.batch, self.length, self.channels, self.num_states, self.num_outputs = scan.shape
        elements = _TILE_ELEMENTS.get(scan.u.device.type, _TILE_ELEMENTS_ELSEWHERE)
        widest = elements // _TILE
        self.block_channels = max(1, min(self.channels, widest // self.num_states))
        self.block_batch = max(1, min(self.batch, widest // (self.num_states * self.block_channels)))
        self.tile_size = max(1, min(self.length, _TILE))
        self.section_size = _SECTION * self.tile_size
        self.num_tiles = -(-self.length // self.tile_size)

    def blocks(self) -> Iterator[tuple[Block, list[Section]]]:
        """Every block with its sections in the order of the scan."""
        index = self.scan.query_index
        queries = None if index is None else index.tolist()
        for r in range(self.directions):
            sections = self._sections(queries, self.scan.is_reverse(r))
            for b in _cut(self.batch, self.block_batch):
                for d in _cut(self.channels, self.block_channels):
                    yield Block(r, b, d, self.scan), sections

    def _sections(self, queries: list[int] | None, reverse: bool) -> list[Section]:
        sections: list[Section] = []
        numbers = count()
        for part in _ordered(_cut(self.length, self.section_size), reverse):
            section = Section(*_run(part, queries, self.scan.query_index), tiles=[])
            local = None if queries is None else section.local
            for piece in _ordered(_cut(section.size, self.tile_size), reverse):
                section.tiles.append(Tile(*_run(piece, local, section.index), number=next(numbers)))
            sections.append(section)
        return sections


def _run(
    positions: slice, known: list[int] | None, index: Tensor | None
) -> tuple[slice, slice, list[int], Tensor | None]:
    """The fields of a Run; ``known`` and ``index`` hold the queries' positions, or None where every position is one."""
    if known is None or index is None:
        return positions, positions, list(range(positions.stop - positions.start)), None
    queries = slice(bisect_left(known, positions.start), bisect_left(known, positions.stop))
    local = [p - positions.start for p in known[queries]]
    return positions, queries, local, index[queries] - positions.start


def _cut(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _ordered(parts: list[slice], reverse: bool) -> list[slice]:
    return parts[::-1] if reverse else parts
