"""The memory of the chunked scan, made once for a block and filled anew for each of its sections and tiles.

States and adjoints have n + 1 slots for the n positions of a tile, so that "before" and "after" every position are
two views of the same memory, shifted by one slot: the first n slots and the last n, or in a reversed scan the last n
and the first n.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from bimba.ops.selective_scan.tiles import Block, Section, Tile

_LOG2_E = math.log2(math.e)


class Workspace:
    """Shapes: n positions; b samples, N states, d channels of the block; q queries.

    :meth:`load` fills, for a section, u, ``x`` (delta and its bias), ``step`` (softplus of x), ``step_u`` (n, b, d),
    B (n, b, N), C (q, b, N), all in the state's dtype. :meth:`scan` fills the states and decay factors of a tile;
    :meth:`adjoint` then replaces the decay factors with e, the gradient of the state times its decay.
    """

    def __init__(self, block: Block, tile_size: int, section_size: int) -> None:
        self._block = block
        samples, channels = block.u.shape[1:]
        wide = (samples, block.A.shape[0], channels)
        self._states, self._e = block.A.new_empty(2, tile_size + 1, *wide)
        self._state_slots, self._e_slots = self._states.unbind(0), self._e.unbind(0)
        self._product = block.A.new_empty(tile_size, *wide)
        self._rows = block.A.new_empty(7, section_size, samples, channels)
        self._ones = block.A.new_ones(tile_size, samples, block.A.shape[0])
        self._A_log2 = block.A * _LOG2_E
        self._order = slice(None, None, -1 if block.reverse else 1)

    def load(self, section: Section) -> None:
        """Read the section's inputs and compute what depends on single positions only."""
        block, dtype, n = self._block, self._block.A.dtype, section.size
        self.u = block.u[section.positions].to(dtype)
        self.B = block.B[section.positions].to(dtype).contiguous()
        self.C = block.C[section.queries].to(dtype).contiguous()
        self.x, self.step, self.step_u, *self.memory = self._rows[:, :n]
        self.x.copy_(block.delta[section.positions])
        if block.bias is not None:
            self.x += block.bias
        if block.scan.delta_softplus:
            softplus(self.x, out=self.step, memory=self.step_u)
        else:
            self.step = self.x
        torch.mul(self.step, self.u, out=self.step_u)

    def scan(self, tile: Tile, state: Tensor) -> Tensor:
        """Decay factors and states of the tile from the state before it (b, N, d); returns the state after it, which
        the next call may be given and overwrites."""
        before, after = self._shifts(tile)
        last = self._state_slots[tile.size if self._block.reverse else 0].copy_(state)
        decay = torch.mul(self.step[tile.positions].unsqueeze(2), self._A_log2, out=self._e[before])
        decay.exp2_()  # several times faster than exp on a CPU
        B, step_u = self.B[tile.positions].unsqueeze(3), self.step_u[tile.positions].unsqueeze(2)
        torch.mul(B, step_u, out=self._states[after])
        slots = zip(self._e_slots[before][self._order], self._state_slots[after][self._order], strict=True)
        for decay_t, state_t in slots:
            last = state_t.addcmul_(decay_t, last)
        return last

    def adjoint(self, tile: Tile, dy: Tensor, later: Tensor) -> None:
        """Turn decay factors into e, last position first, from the section's dy (q, b, d) and from ``later`` (b, N, d),
        the e of the position scanned after the tile, which becomes that of the tile's first."""
        before, _ = self._shifts(tile)
        C, dy = self.C[tile.queries].unsqueeze(3), dy[tile.queries].unsqueeze(2)
        outer_at = dict(zip(tile.local, zip(C.unbind(0), dy.unbind(0), strict=True), strict=True))
        g = self._product[0]
        first = self._e_slots[0 if self._block.reverse else tile.size].copy_(later)
        for t, e in list(enumerate(self._e_slots[before]))[self._order][::-1]:
            first = e.mul_(torch.addcmul(first, *outer_at[t], out=g) if t in outer_at else first)
        later.copy_(first)

    def states_at_queries(self, tile: Tile) -> Tensor:
        """(q, b, N, d), until the next call of any method."""
        return tile.at_queries(self._states[self._shifts(tile)[1]], memory=self._product)

    def e_after(self, tile: Tile) -> Tensor:
        """Of each position, the e of the position scanned after it: (n, b, N, d)."""
        return self._e[self._shifts(tile)[1]]

    def through_decay(self, tile: Tile, dstep: Tensor) -> Tensor:
        """From e, the gradients through the decay factors: of step into ``dstep`` (n, b, d), of A returned (N, d).
        Overwrites the states."""
        before, _ = self._shifts(tile)
        dlog_decay = self._states[before].mul_(self._e[before])
        product = torch.mul(dlog_decay, self.step[tile.positions].unsqueeze(2), out=self._product[: tile.size])
        rows = product.flatten(0, 1).flatten(1)
        sum_states(self._ones[: tile.size], dlog_decay.mul_(self._block.A), out=dstep)
        # A product with ones: twice as fast as sum here.
        return torch.mm(self._ones.view(1, -1)[:, : rows.shape[0]], rows).view(product.shape[2:])

    def _shifts(self, tile: Tile) -> tuple[slice, slice]:
        """The slots before and after the positions."""
        first, last = slice(0, tile.size), slice(1, tile.size + 1)
        return (last, first) if self._block.reverse else (first, last)


def softplus(x: Tensor, out: Tensor, memory: Tensor) -> Tensor:
    """log(1 + exp(x)), x elsewhere untouched; ``memory`` is overwritten.

    On a CPU torch's own takes six times longer, as long as all the rest of the scan: its log1p is not vectorised, atanh
    is, and with w = exp(-|x|) in (0, 1], log(1 + w) = 2 atanh(w / (w + 2)) without cancellation. What is left is the
    rounding of exp2's argument: a relative error of |x| 5e-8 in float32 where x is negative.
    """
    if x.device.type != "cpu":
        return out.copy_(F.softplus(x))
    w = torch.abs(x, out=out).mul_(-_LOG2_E).exp2_()
    torch.add(w, 2, out=memory)
    w.div_(memory).atanh_()
    return w.mul_(2).add_(torch.clamp_min(x, 0, out=memory))


def sum_states(weights: Tensor, x: Tensor, out: Tensor) -> None:
    """sum_n weights[n] x[n, d]: (q, b, N), (q, b, N, d) -> ``out`` (q, b, d)."""
    torch.bmm(weights.flatten(0, 1).unsqueeze(1), x.flatten(0, 1), out=out.flatten(0, 1).unsqueeze(1))


def sum_channels(weights: Tensor, x: Tensor) -> Tensor:
    """sum_d weights[d] x[n, d]: (q, b, d), (q, b, N, d) -> (q, b, N)."""
    return torch.bmm(weights.flatten(0, 1).unsqueeze(1), x.flatten(0, 1).transpose(1, 2)).view(x.shape[:3])
