"""The scan in plain PyTorch, tile by tile: linear in L, memory bounded, on any device.

A tile is a run of consecutive positions, small enough for the processor's cache. Within it everything that does not
depend on the state before is one large operation; only ``h[t] += decay[t] h[t - 1]`` is left to a Python loop. Memory
is made once and reused for every tile, so nothing of size (B, D, L, N) exists and no tile waits for fresh pages. The
forward pass keeps the state at the start of each tile; the backward pass recomputes the tile from it, then walks the
tile the other way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bimba.ops.backend import Backend
from bimba.ops.selective_scan.inputs import Scan
from bimba.ops.selective_scan.tiles import Cut
from bimba.ops.selective_scan.workspace import Workspace, sum_channels, sum_states


def saved_shape(scan: Scan) -> tuple[int, ...]:
    """The state before each tile: (R, tiles, B, N, D)."""
    cut = Cut(scan)
    return (cut.directions, cut.num_tiles, cut.batch, cut.num_states, cut.channels)


def forward(scan: Scan, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (R, B, Q, D) but for the gate, the last state (R, B, D, N), and the state before each tile if ``save``."""
    cut = Cut(scan)
    y = _new(scan, cut.directions, cut.batch, cut.num_outputs, cut.channels)
    last_state = _new(scan, cut.directions, cut.batch, cut.channels, cut.num_states)
    saved = _new(scan, *(saved_shape(scan) if save else (0,)))
    for block, sections in cut.blocks():
        work = Workspace(block, cut.tile_size, cut.section_size)
        y_block, state = block.rows(y), block.initial_state()
        for section in sections:
            work.load(section)
            y_section = work.memory[0][: len(section.local)]
            for tile in section.tiles:
                if save:
                    saved[block.r, tile.number, block.b, :, block.d] = state
                state = work.scan(tile, state)
                sum_states(work.C[tile.queries], work.states_at_queries(tile), out=y_section[tile.queries])
            if block.D is not None:
                y_section.addcmul_(block.D, section.at_queries(work.u, memory=work.memory[1]))
            y_block[section.queries] = y_section
        block.state(last_state).copy_(state)
    return y, last_state, saved


def backward(scan: Scan, saved: Tensor, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, delta_bias and initial_state.

    With g[t] the gradient of the state h[t], e[t] = decay[t] g[t], and t' the position scanned after t::

        g[t] = e[t'] + C[t] dy[t]                                      second term at queries only
        dC = sum_d dy h      dB = sum_d g step u      d(step u) = sum_n g B      d(step A) = e h[before]
    """
    cut = Cut(scan)
    du, ddelta = _new(scan, *scan.u.shape), _new(scan, *scan.u.shape)
    dA, dB, dC = (_new(scan, *x.shape).zero_() for x in (scan.A, scan.B, scan.C))
    dD = None if scan.D is None else _new(scan, *scan.D.shape).zero_()
    dinitial_state = _new(scan, *dlast.shape)
    for block, sections in cut.blocks():
        r, b, d = block.r, block.b, block.d
        work = Workspace(block, cut.tile_size, cut.section_size)
        later = block.state(dlast).clone(memory_format=torch.contiguous_format)  # e of the position scanned after
        for section in reversed(sections):
            work.load(section)
            u, step, step_u, B, C = work.u, work.step, work.step_u, work.B, work.C
            dstep_u, dstep, at_queries, product = work.memory
            dB_section, dC_section = torch.empty_like(B), torch.empty_like(C)
            dy_section = block.rows(dy)[section.queries].contiguous()
            for tile in reversed(section.tiles):
                p, q = tile.positions, tile.queries
                work.scan(tile, saved[r, tile.number, b, :, d])
                dC_section[q] = sum_channels(dy_section[q], work.states_at_queries(tile))
                work.adjoint(tile, dy_section, later)
                e_after = work.e_after(tile)
                dB_section[p] = sum_channels(step_u[p], e_after)
                sum_states(B[p], e_after, out=dstep_u[p])
                dA[r, d] += work.through_decay(tile, dstep[p]).t()

            # g = e_after + C dy; the second term is low-rank, so its share is added without forming it.
            product = product[: len(section.local)]
            torch.mul(dy_section, section.at_queries(step_u, memory=at_queries), out=product)
            section.add_at_queries(dB_section, C * product.sum(2, keepdim=True))
            CB = (C * B if section.index is None else C * B.index_select(0, section.index)).sum(2, keepdim=True)
            section.add_at_queries(dstep_u, torch.mul(dy_section, CB, out=product))
            block.states(dB)[section.positions] += dB_section
            block.states(dC)[section.queries] += dC_section

            dstep.addcmul_(dstep_u, u)
            block.rows(ddelta)[section.positions] = dstep.mul_(work.x.sigmoid_()) if scan.delta_softplus else dstep
            du_section = dstep_u.mul_(step)
            if block.D is not None and dD is not None:
                section.add_at_queries(du_section, torch.mul(dy_section, block.D, out=product))
                torch.mul(dy_section, section.at_queries(u, memory=at_queries), out=product)
                dD[r, d] += product.sum((0, 1))
            block.rows(du)[section.positions] = du_section
        block.state(dinitial_state).copy_(later)
    dbias = None if scan.delta_bias is None else ddelta.sum((1, 2))
    return du, ddelta, dA, dB, dC, dD, dbias, None if scan.initial_state is None else dinitial_state


def _new(scan: Scan, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=scan.dtype, device=scan.u.device)


BACKEND = Backend(forward=forward, backward=backward, saved_shape=saved_shape, priority=10)
