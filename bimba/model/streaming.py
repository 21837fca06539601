"""Step [4], a piece of the sequence at a time: only tokens, queries, and what is computed at queries grow in memory.

A direction walks the sequence in pieces of neighbouring positions and carries two things from one to the next: the
scan's state, and the last rows of the layer's input, which the convolution looks back at. The backward direction walks
the other way, and as the second one it also gates, projects and adds the residual, so that a piece's output is done.
With gradients a piece is computed again when its turn comes in the backward pass: what is kept is what was carried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bimba.ops import interleave

Carried = tuple[Tensor, Tensor] | None  # the scan's state (1, B, ...); up to W - 1 rows of input (B, W - 1, C)


class Streamable(Protocol):
    """A mixer that can be streamed. Its ``directions`` are its own, with ``conv`` (R, D, W) and ``reverse``."""

    bidirectional: bool

    def directions(self, numbers: tuple[int, ...]) -> Any: ...

    def inner(self, x: Tensor) -> Tensor: ...

    def convolve(self, inner: Tensor, directions: Any) -> Tensor: ...

    def scan(
        self, u: Tensor, query_index: Tensor | None, directions: Any, initial_state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def read_out(self, y: Sequence[Tensor], read: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class _Layer:
    mixer: Streamable
    norm: nn.Module
    residual: bool
    everything: bool  # every position is read


@dataclass(frozen=True)
class _Piece:
    tokens: Tensor  # (B, s, C)
    queries: Tensor  # (B, q, C)
    query_index: Tensor  # (q,), places of the queries in the piece


def stream(
    mixer: Streamable,
    norm: nn.Module,
    residual: bool,
    tokens: Tensor,
    queries: Tensor,
    query_index: Tensor,
    everything: bool,
    sizes: Sequence[tuple[int, int]],
) -> Tensor:
    """What a block computes of tokens (B, S, C) and queries (B, Q, C), in pieces of ``sizes`` (tokens, queries)."""
    layer = _Layer(mixer, norm, residual, everything)
    pieces = _cut(tokens, queries, query_index, sizes)
    ways = [(0, pieces)]
    if mixer.bidirectional:
        ways.append((1, pieces[::-1]))
    y: Sequence[Tensor | None] = [None] * len(pieces)  # of the directions so far, in the order of the next
    for number, in_order in ways:
        is_last = number == len(ways) - 1
        directions = mixer.directions((number,))
        carried: Carried = None
        outputs = []
        for piece, y_before in zip(in_order, y, strict=True):
            arguments = (layer, piece, directions, carried, y_before, is_last)
            if torch.is_grad_enabled():
                output, carried = checkpoint(_advance, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                output, carried = _advance(*arguments)
            outputs.append(output)
        y = outputs[::-1]
    return torch.cat([output for output in (y if len(ways) == 2 else y[::-1]) if output is not None], dim=1)


def _advance(
    layer: _Layer, piece: _Piece, directions: Any, carried: Carried, y_before: Tensor | None, is_last: bool
) -> tuple[Tensor, Carried]:
    """One piece of one direction: y (B, q, D), or what the block returns if the direction is the last; what follows.

    What is no longer needed is dropped at once: the memory of a piece is the memory of the whole.
    """
    mixer = layer.mixer
    x = layer.norm(interleave(piece.tokens, piece.queries, piece.query_index))
    length, before = x.shape[1], 0
    state = None
    if carried is not None:
        state, edge = carried
        before = 0 if directions.reverse else edge.shape[1]
        x = torch.cat([x, edge] if directions.reverse else [edge, x], dim=1)
    taps = directions.conv.shape[2] - 1
    edge = (x[:, :taps] if directions.reverse else x[:, max(0, x.shape[1] - taps) :]).clone()  # not a view of all of x
    inner = mixer.inner(x)
    del x
    u = mixer.convolve(inner, directions)
    del inner
    u = u[:, :, before : before + length]
    y, state = mixer.scan(u, None if layer.everything else piece.query_index, directions, state)
    del u
    y = y[0] if y_before is None else y[0] + y_before
    if is_last:
        read = piece.queries
        if layer.everything:
            read = interleave(piece.tokens, piece.queries, piece.query_index)
        y = mixer.read_out([y], layer.norm(read)) + (read if layer.residual else 0)
    return y, (state, edge)


def _cut(tokens: Tensor, queries: Tensor, query_index: Tensor, sizes: Sequence[tuple[int, int]]) -> list[_Piece]:
    """Split, not sliced: the gradient of a slice is as long as the sequence."""
    num_tokens, num_queries = ([size[i] for size in sizes] for i in (0, 1))
    places = query_index.split(num_queries)
    pieces, start = [], 0
    for t, q, place in zip(tokens.split(num_tokens, dim=1), queries.split(num_queries, dim=1), places, strict=True):
        pieces.append(_Piece(t, q, place - start))
        start += t.shape[1] + q.shape[1]
    return pieces
