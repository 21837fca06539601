"""The scan in plain PyTorch, tile by tile: fast on a CPU, linear in L, memory bounded.

A tile is a run of consecutive positions, small enough for the processor's cache. Within it everything that does not
depend on the state before is one large operation; only ``h[t] += decay[t] h[t - 1]`` is left to a Python loop. The
tile's buffers are reused for the next one, so nothing of size (B, D, L, N) exists. The forward pass keeps the state
at the start of each tile; the backward pass recomputes the tile from it, then walks the tile the other way.

Shapes: n positions of a tile, in the order of the scan; b samples, N states, d channels; q queries in the tile.
"""

from __future__ import annotations

import math
import torch
from torch import Tensor
from torch.nn import functional as F

from bimba.ops.backend import Backend
from bimba.ops.selective_scan.inputs import Scan
from bimba.ops.selective_scan.tiles import Block, Tile, TiledInputs

_LOG2_E = math.log2(math.e)


def _inputs(scan: Scan, r: int) -> TiledInputs:
    D, bias = (None if x is None else x[r] for x in (scan.D, scan.delta_bias))
    return TiledInputs(
        scan.u[r].mT, scan.delta[r].mT, scan.A[r], scan.B[r].mT, scan.C[r].mT, D, bias, scan.is_reverse(r),
        scan.query_index,
    )  # fmt: skip


def saved_shape(scan: Scan) -> tuple[int, ...]:
    inputs = _inputs(scan, 0)
    return (scan.u.shape[0], len(inputs.tiles), inputs.batch, inputs.num_states, inputs.channels)


def forward(scan: Scan, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    saved = scan.u.new_empty(saved_shape(scan) if save else (0,), dtype=scan.dtype)
    y = [
        _forward(_inputs(scan, r), scan.delta_softplus, saved[r] if save else None).mT.contiguous()
        for r in range(scan.u.shape[0])
    ]
    R, B, L, D, N, Q = scan.shape
    return torch.stack(y), scan.u.new_zeros(R, B, D, N, dtype=scan.dtype), saved


def backward(scan: Scan, saved: Tensor, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
    per = []
    for r in range(scan.u.shape[0]):
        du, dd, dA, dB, dC, dD, db = _backward(_inputs(scan, r), scan.delta_softplus, saved[r], dy[r].transpose(0, 1))
        per.append((du.mT, dd.mT, dA, dB.mT, dC.mT, dD, db))
    grads = [torch.stack(x) for x in zip(*per, strict=True)]
    return (*grads, None if scan.initial_state is None else torch.zeros_like(scan.initial_state))


def _forward(inputs: TiledInputs, softplus: bool, starts: Tensor | None) -> Tensor:
    """y (B, D, Q); the state before each tile goes to ``starts`` (tiles, B, N, D)."""
    y = inputs.new(inputs.batch, inputs.num_outputs, inputs.channels)
    with torch.autocast(inputs.device.type, enabled=False):
        for block in inputs.blocks:
            y_block = y[block.b, :, block.d].transpose(0, 1)  # (Q, b, d)
            buffers = _Buffers(inputs, block)
            buffers.states[0].zero_()
            for tile in inputs.tiles:
                if starts is not None:
                    starts[tile.number, block.b, :, block.d] = buffers.states[0]
                u, delta, B, C = block.read(tile)
                step = F.softplus(delta) if softplus else delta
                buffers.scan(step, B, step * u)
                if tile.local:
                    y_tile = _sum_states(C, buffers.states_at_queries(tile))
                    if block.D is not None:
                        y_tile += block.D * tile.at_queries(u)
                    tile.write_queries(y_block, y_tile)
                buffers.states[0].copy_(buffers.states[tile.size])
    return y.transpose(1, 2)


def _backward(inputs: TiledInputs, softplus: bool, starts: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """Gradients of u, delta, A, B, C, D, delta_bias from dy (Q, B, D).

    With g[t] the gradient of the state h[t], e[t] = decay[t] g[t], and t' the position scanned after t::

        g[t] = e[t'] + C[t] dy[t]                                      second term at queries only
        dC = sum_d dy h      dB = sum_d g step u      d(step u) = sum_n g B      d(step A) = e h[before]
    """
    batch, length, channels = inputs.batch, inputs.length, inputs.channels
    du, ddelta = inputs.new(batch, length, channels), inputs.new(batch, length, channels)
    dA = inputs.new(inputs.num_states, channels).zero_()
    dD, dbias = inputs.new(channels).zero_(), inputs.new(channels).zero_()
    dB = inputs.new(batch, length, inputs.num_states).zero_()
    dC = inputs.new(batch, inputs.num_outputs, inputs.num_states).zero_()
    with torch.autocast(inputs.device.type, enabled=False):
        for block in inputs.blocks:
            b, d = block.b, block.d
            buffers = _Buffers(inputs, block)
            e_later = torch.zeros_like(buffers.states[0])  # e of the position scanned after the tile
            for tile in reversed(inputs.tiles):
                n = tile.size
                u, delta, B, C = block.read(tile)
                dy_tile = tile.read_queries(dy[:, b, d]).to(inputs.dtype)
                step = F.softplus(delta) if softplus else delta
                step_u = step * u
                buffers.states[0].copy_(starts[tile.number, b, :, d])
                buffers.scan(step, B, step_u)
                dC_tile = _sum_channels(dy_tile, buffers.states_at_queries(tile))

                buffers.e[n].copy_(e_later)
                buffers.adjoint(tile, C, dy_tile)
                e_later.copy_(buffers.e[0])
                e_after = buffers.e[1 : n + 1]
                # g = e_after + C dy; the second term is low-rank, so its share is added without forming it.
                dB_tile, dstep_u = _sum_channels(step_u, e_after), _sum_states(B, e_after)
                tile.add_at_queries(dB_tile, C * (dy_tile * tile.at_queries(step_u)).sum(2, keepdim=True))
                tile.add_at_queries(dstep_u, dy_tile * (C * tile.at_queries(B)).sum(2, keepdim=True))

                dlog_decay = buffers.states[:n].mul_(buffers.e[:n])
                dA[:, d] += _sum_positions(torch.mul(dlog_decay, step.unsqueeze(2), out=buffers.work[:n]))
                dstep = dlog_decay.mul_(block.A).sum(2).addcmul_(dstep_u, u)
                ddelta_tile = dstep.mul_(torch.sigmoid(delta)) if softplus else dstep
                dbias[d] += ddelta_tile.sum((0, 1))
                du_tile = dstep_u.mul_(step)
                if block.D is not None:
                    tile.add_at_queries(du_tile, block.D * dy_tile)
                    dD[d] += (dy_tile * tile.at_queries(u)).sum((0, 1))
                tile.write(du[b, :, d].transpose(0, 1), du_tile)
                tile.write(ddelta[b, :, d].transpose(0, 1), ddelta_tile)
                tile.add(dB[b].transpose(0, 1), dB_tile)
                tile.add_queries(dC[b].transpose(0, 1), dC_tile)
    return du.transpose(1, 2), ddelta.transpose(1, 2), dA.t(), dB.transpose(1, 2), dC.transpose(1, 2), dD, dbias


class _Buffers:
    """The memory of one tile, reused for the next."""

    def __init__(self, inputs: TiledInputs, block: Block) -> None:
        width = (block.u.shape[1], inputs.num_states, block.u.shape[2])
        self.states = inputs.new(inputs.tile_size + 1, *width)  # slot 0: before the tile; slot i + 1: after position i
        self.e = inputs.new(inputs.tile_size + 1, *width)  # slot i: decay of position i, later its e; then e_later
        self.work = inputs.new(inputs.tile_size, *width)
        self.A_log2 = block.A * _LOG2_E
        self.state_slots = self.states.unbind(0)
        self.e_slots = self.e.unbind(0)

    def scan(self, step: Tensor, B: Tensor, step_u: Tensor) -> None:
        """Fill the decay factors and states of a tile from its slot 0."""
        n = step.shape[0]
        decay = torch.mul(step.unsqueeze(2), self.A_log2, out=self.e[:n])
        decay.exp2_()  # several times faster than exp on a CPU
        torch.mul(B.unsqueeze(3), step_u.unsqueeze(2), out=self.states[1 : n + 1])
        before = self.state_slots[0]
        for decay_t, state in zip(self.e_slots[:n], self.state_slots[1:], strict=False):
            state.addcmul_(decay_t, before)
            before = state

    def adjoint(self, tile: Tile, C: Tensor, dy: Tensor) -> None:
        """Turn decay factors into e, last position first; slot n holds the e of the position scanned after the tile."""
        outer = zip(C.unsqueeze(3).unbind(0), dy.unsqueeze(2).unbind(0), strict=True)
        outer_at = dict(zip(tile.local, outer, strict=True))
        g, later = self.work[0], self.e_slots[tile.size]
        for t in range(tile.size - 1, -1, -1):
            e = self.e_slots[t]
            e.mul_(torch.addcmul(later, *outer_at[t], out=g) if t in outer_at else later)
            later = e

    def states_at_queries(self, tile: Tile) -> Tensor:
        """(q, b, N, d); may lie in ``work``."""
        return tile.at_queries(self.states[1 : tile.size + 1], out=self.work)


def _sum_states(weights: Tensor, x: Tensor) -> Tensor:
    """sum_n weights[n] x[n, d]: (q, b, N), (q, b, N, d) -> (q, b, d)."""
    return torch.bmm(weights.flatten(0, 1).unsqueeze(1), x.flatten(0, 1)).view(*x.shape[:2], x.shape[3])


def _sum_channels(weights: Tensor, x: Tensor) -> Tensor:
    """sum_d weights[d] x[n, d]: (q, b, d), (q, b, N, d) -> (q, b, N)."""
    product = torch.bmm(weights.flatten(0, 1).unsqueeze(1), x.flatten(0, 1).transpose(1, 2))
    return product.view(x.shape[:3])


def _sum_positions(x: Tensor) -> Tensor:
    """(n, b, N, d) -> (N, d); a product with ones is twice as fast as sum here."""
    rows = x.flatten(0, 1).flatten(1)
    return torch.mm(rows.new_ones(1, rows.shape[0]), rows).view(x.shape[2:])


BACKEND = Backend(forward=forward, backward=backward, saved_shape=saved_shape, priority=10)
