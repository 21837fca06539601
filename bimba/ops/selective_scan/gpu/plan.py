"""What is decided before a kernel is launched: the chunks, where queries lie, the size of what is saved. No Triton."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bimba.ops.selective_scan.inputs import Scan

BLOCK = 64  # steps between two saved states
WARP = 32  # channels of a block
PARTS = 4  # programs a block has in the forward pass, each with a PARTS-th of the channels (see forward.py)


def saved_shape(scan: Scan) -> tuple[int, ...]:
    """The state before every BLOCK steps: N D BLOCK-th parts of L floats a direction and sample.

    At 7B size (D = 7168, N = 16, 64 frames, both directions) 0.85 GB; u and delta are 3.4 GB in bfloat16.
    """
    R, B, L, D, N, _ = scan.shape
    return (R, B, -(-L // BLOCK), *blocks_shape(D, N))


def blocks_shape(D: int, N: int) -> tuple[int, int, int]:
    """How D channels of N states lie, block by block of WARP channels, N filled up to a power of two, 4 at least."""
    return -(-D // WARP), max(PARTS, 1 << (N - 1).bit_length()), WARP


def to_blocks(x: Tensor) -> Tensor:
    """(..., D, N) -> (..., C, BN, WARP) float32, filled up with zeros."""
    D, N = x.shape[-2:]
    C, BN, _ = blocks_shape(D, N)
    return F.pad(x.float(), (0, BN - N, 0, C * WARP - D)).unflatten(-2, (C, WARP)).mT.contiguous()


def from_blocks(x: Tensor, D: int, N: int) -> Tensor:
    """The inverse of :func:`to_blocks`; always a copy."""
    return x.mT.flatten(-3, -2)[..., :D, :N].clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Plan:
    """How one call is cut up.

    Attributes:
        programs: directions * samples * blocks of channels.
        chunks: into how many the steps are cut.
        chunk: steps in each but the last, a multiple of BLOCK.
        blocks: of BLOCK steps in the sequence.
    """

    programs: int
    chunks: int
    chunk: int
    blocks: int


def make_plan(scan: Scan, processors: int, backward: bool = False) -> Plan:
    """Chunks, where the blocks of channels do not fill the GPU.

    Forwards a block has PARTS warps, and four blocks fill a processor. One of them alone takes six tenths of their
    time, and chunks double the work: they pay where there is no block for each processor. Backwards a block is one
    warp, chunks cost half as much more, and eight blocks fill a processor: they pay below three.
    """
    R, B, L, D, _, _ = scan.shape
    programs, blocks = R * B * -(-D // WARP), -(-L // BLOCK)
    if backward:
        wanted = 1 if programs >= 3 * processors else -(-8 * processors // programs)
    else:
        wanted = 1 if programs > processors else 4 * processors // programs
    per_chunk = -(-blocks // min(wanted, blocks))
    return Plan(programs, -(-blocks // per_chunk), per_chunk * BLOCK, blocks)


def next_query(query_index: Tensor, length: int, blocks: int) -> Tensor:
    """(2, blocks + 1) int32: the query that a scan meets next when it enters each block, forwards and backwards.

    It need not be in that block, and where none is left it is one that does not exist, Q or -1.
    """
    edges = (torch.arange(blocks + 1, device=query_index.device) * BLOCK).clamp(max=length)
    forwards, backwards = (torch.searchsorted(query_index, x) for x in (edges, length - edges))
    return torch.stack([forwards, backwards - 1]).to(torch.int32)


def query_bits(query_index: Tensor, length: int, tile: int) -> Tensor:
    """(2, tiles + 1) int32: which steps are queries, bit t of number i for step i * tile + t; forwards and backwards.

    The last number is beyond the last step: what is read ahead of the last tile.
    """
    tiles = -(-length // tile) + 1
    bits = torch.zeros(2, tiles * tile, dtype=torch.int32, device=query_index.device)
    bits.scatter_(1, torch.stack([query_index, length - 1 - query_index]), 1)
    weights = 1 << torch.arange(tile, dtype=torch.int32, device=query_index.device)
    return (bits.view(2, tiles, tile) * weights).sum(-1, dtype=torch.int32)
