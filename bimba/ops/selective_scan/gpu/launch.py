"""From a :class:`Scan` to the kernels and back: small tensors made ready, outputs allocated, chunks carried."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch
from torch import Tensor

from bimba.ops.selective_scan.gpu import plan
from bimba.ops.selective_scan.gpu.backward import backward_kernel
from bimba.ops.selective_scan.gpu.chunks import carry_kernel, chunk_gradients_kernel, chunk_states_kernel
from bimba.ops.selective_scan.gpu.common import LOG2E
from bimba.ops.selective_scan.gpu.forward import forward_kernel
from bimba.ops.selective_scan.inputs import Scan

_TILE, _TILE_EVERY = 16, 8  # steps of a tile; the latter where every token is a query, which needs more registers
_TILE_GRADIENTS, _TILE_BACKWARD = 8, 2  # of tiles that are in registers as a whole
_REGISTERS = 128  # of a thread that scans forwards: 16 warps then fit a processor, and 14 are there at 7B size


def processors(device: torch.device) -> int:
    """How many multiprocessors the GPU has; 1 in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _rows(x: Tensor) -> Tensor:
    """(R, B, L, D) with one token behind the other, as the backward kernel wants it; what a layer computes lies so."""
    return x if x.stride(2) == x.shape[3] else x.contiguous()


class _Call:
    """One scan's inputs as the kernels take them, each known by the name of the kernels' argument.

    u and delta, the large ones, are read where they lie. All others are small beside them (N numbers where those have
    D) and become contiguous float32: a thread then reads four states' B with one instruction and converts nothing.
    """

    def __init__(self, scan: Scan, backward: bool = False) -> None:
        R, B, L, D, N, Q = scan.shape
        self.scan, self.shape = scan, scan.shape
        self.state = plan.blocks_shape(D, N)
        self.plan = plan.make_plan(scan, processors(scan.u.device), backward)
        self.tensors: dict[str, Tensor | None] = {
            "u": scan.u,
            "delta": scan.delta,
            "A": plan.to_blocks(scan.A.float() * LOG2E.value),
            "B": scan.B.float().contiguous(),
            "C": scan.C.float().contiguous() if Q else self.zeros(R, B, 1, N),
            "skip": None if scan.D is None else scan.D.float().contiguous(),
            "bias": self.zeros(R, D) if scan.delta_bias is None else scan.delta_bias.float().contiguous(),
            "query_index": None if scan.query_index is None else scan.query_index.to(torch.int32).contiguous(),
            "next_query": None if scan.query_index is None else plan.next_query(scan.query_index, L, self.plan.blocks),
        }
        self.numbers: dict[str, Any] = {
            **{f"u_{axis}": stride for axis, stride in zip("rbt", scan.u.stride(), strict=False)},
            **{f"delta_{axis}": stride for axis, stride in zip("rbt", scan.delta.stride(), strict=False)},
            "batch": B, "length": L, "channels": D, "outputs": Q, "chunk": self.plan.chunk,
            "chunks": self.plan.chunks, "blocks": self.plan.blocks, "reverse": int(scan.reverse), "unit": 1,
            "SOFTPLUS": scan.delta_softplus, "N": N, "BN": self.state[1], "BD": plan.WARP,
            "BLOCK": plan.BLOCK,
        }  # fmt: skip

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.scan.u.device)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.scan.u.device)

    def forwards(self) -> dict[str, Any]:
        """What the kernels that scan forwards take otherwise: B in the order of steps, C with a row at either end that
        may be read and is not used, the queries as bits."""
        R, B, L, _, N, Q = self.shape
        steps, rows = self.new(R, B, L, N), self.new(R * B * Q + 2, N)
        for r in range(R):
            steps[r].copy_(self.scan.B[r].flip(1) if self.scan.is_reverse(r) else self.scan.B[r])
        rows[1:-1].view(R, B, Q, N).copy_(self.scan.C)
        index = self.scan.query_index
        tile = _TILE_EVERY if index is None else _TILE
        bits = None if index is None else plan.query_bits(index, L, tile)
        return {"B": steps, "C": rows[1:], "query_bits": bits, "PARTS": plan.PARTS, "T": tile, "maxnreg": _REGISTERS}

    def launch(self, kernel: Any, programs: int, **arguments: Any) -> None:
        """Runs ``kernel`` with those that it names of ``arguments`` and of the call's inputs."""
        known = {**self.tensors, **self.numbers, **arguments}
        own = {name: known[name] for name in (*kernel.arg_names, "maxnreg") if name in known}
        device = self.scan.u.device
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            kernel[(programs,)](**own, num_warps=1)

    def carried(self, kernel: Any, edge: Tensor | None, backward: bool, **arguments: Any) -> Tensor:
        """What enters each chunk, (R, B, chunks, C, BN, BD), if ``edge`` (R, B, C, BN, BD) enters the first or last."""
        R, B, _, D, _, _ = self.shape
        states, totals = self.new(R, B, self.plan.chunks, *self.state), self.new(R, B, self.plan.chunks, D)
        name = "gradients" if backward else "states"
        programs = self.plan.programs * self.plan.chunks * (1 if backward else plan.PARTS)
        self.launch(kernel, programs, **{name: states}, totals=totals, **arguments)
        self.launch(carry_kernel, self.plan.programs, states=states, totals=totals, edge=edge, BACKWARD=backward)
        return states


def forward(scan: Scan, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See :mod:`bimba.ops.selective_scan.triton`."""
    R, B, L, D, N, Q = scan.shape
    initial = scan.initial_state
    if 0 in (B, L, D):
        options: dict[str, Any] = {"dtype": torch.float32, "device": scan.u.device}
        y, saved = torch.zeros(R, B, Q, D, **options), torch.zeros(plan.saved_shape(scan) if save else (0,), **options)
        return y, torch.zeros(R, B, D, N, **options) if initial is None else initial.clone().contiguous(), saved
    if initial is not None:
        initial = plan.to_blocks(initial)
    call = _Call(scan)
    starts, forwards = initial, call.forwards()
    if call.plan.chunks > 1:
        starts = call.carried(chunk_states_kernel, initial, backward=False, **forwards)
    y, last = call.new(R, B, Q, D), call.new(R, B, *call.state)
    saved = call.new(*(plan.saved_shape(scan) if save else (0,)))
    programs = call.plan.programs * call.plan.chunks * plan.PARTS
    call.launch(forward_kernel, programs, starts=starts, y=y, last=last, saved=saved, SAVE=save, **forwards)
    return y, plan.from_blocks(last, D, N), saved


def backward(scan: Scan, saved: Tensor, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
    """See :mod:`bimba.ops.selective_scan.triton`."""
    R, B, L, D, N, Q = scan.shape
    given = (scan.u, scan.delta, scan.A, scan.B, scan.C, scan.D, scan.delta_bias, scan.initial_state)
    if 0 in (B, L, D):
        none: list[Tensor | None] = [None if x is None else torch.zeros(x.shape, device=x.device) for x in given]
        if scan.initial_state is not None:
            none[-1] = dlast.clone()
        return tuple(none)
    call = _Call(dataclasses.replace(scan, u=_rows(scan.u), delta=_rows(scan.delta)), backward=True)
    chunks, programs = call.plan.chunks, call.plan.programs * call.plan.chunks
    dy = dy if Q else call.zeros(R, B, 1, D)
    ends = plan.to_blocks(dlast)
    if chunks > 1:
        ends = call.carried(chunk_gradients_kernel, ends, backward=True, dy=dy, T=_TILE_GRADIENTS)
    du, ddelta = call.new(R, B, L, D, dtype=scan.u.dtype), call.new(R, B, L, D, dtype=scan.delta.dtype)
    dB, dC = call.zeros(R, B, L, N), call.zeros(R, B, Q, N)
    dA, dstart = (call.new(R, B, chunks, *call.state) for _ in range(2))
    dskip, dbias = (call.new(R, B, chunks, *call.state[::2]) for _ in range(2))
    scratch = call.new(programs, plan.BLOCK // _TILE_BACKWARD, *call.state[1:])
    call.launch(
        backward_kernel, programs, saved=saved, ends=ends, dy=dy, scratch=scratch, du=du, ddelta=ddelta, dA=dA, dB=dB,
        dC=dC, dskip=dskip, dbias=dbias, dstart=dstart, T=_TILE_BACKWARD,
    )  # fmt: skip
    dskip, dbias = (x.sum((1, 2)).flatten(1)[:, :D].contiguous() for x in (dskip, dbias))
    grads = (
        du, ddelta, plan.from_blocks(dA.sum((1, 2)), D, N), dB, dC, dskip, dbias,
        plan.from_blocks(dstart[:, :, 0], D, N),
    )  # fmt: skip
    return tuple(None if x is None else grad for x, grad in zip(given, grads, strict=True))
