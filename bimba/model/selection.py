"""Step [4] looked at: which space-time tokens the last scan of a compressor read its queries from.

A compressor is watched while it works, and what its last layer was given is taken apart by
:func:`bimba.ops.selective_scan.attribution.attribute`, back through the scan and the convolution before it. What token
s adds to query q in one direction is the vector ::

    out_proj(gate[q] * x[q, s])
    x[q, s, d] = (sum over k of w[q, s + k, d] sigmoid(z[s + k, d]) taps[d, k]) v[s, d]

with v = in_proj(norm(token)) and z the convolution's output. Over tokens and directions these vectors, with those of
the convolution's bias and of the skips D u at the queries, add up to what the layer adds to the query. The map shows
their lengths. Of a layer with others in front of it the tokens are what those others made of the patches, at the same
places. What is held fixed, as attention's weights are when attention is drawn: step, B, C, gate, sigmoid(z), the norm,
Mamba-2's behind the gate as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bimba.model import compressor as compressors
from bimba.model.block import MambaBlock
from bimba.model.selection_inputs import DirectionInputs, ScanMixer, gate_of, inputs_of
from bimba.ops import interleave
from bimba.ops.selective_scan.attribution import attribute
from bimba.types import BimbaError

DIRECTIONS = ("forward", "backward")
Measure = Literal["change", "gated"]
_BLOCK = 64  # queries whose rows (q, L) are in memory at a time


@dataclass(frozen=True)
class Watched:
    """What the last scan of a compressor was given in one call, for one video.

    Attributes:
        block: the layer.
        tokens: (1, S, C), those of the question around them, if there are any.
        queries: (1, Q, C).
        query_index: (Q,) their places in the sequence of S + Q tokens.
        before: how many of the S tokens stand before the first one of the video.
        grid: (T, H, W) of the layer's space-time tokens.
        frames: (T,) which of the compressor's frames these are: inner layers may drop some.
        query_grid: (T', Q').
    """

    block: MambaBlock
    tokens: Tensor
    queries: Tensor
    query_index: Tensor
    before: int
    grid: tuple[int, int, int]
    frames: Tensor
    query_grid: tuple[int, int]


@dataclass(frozen=True)
class SelectionMap:
    """How much each space-time token added to the queries, on the CPU, in float32.

    Attributes:
        directions: names of the R directions.
        total: (R, T, H, W), the mean over the queries that were looked at.
        per_query: (R, K, T, H, W) of each of them.
        queries: (K,) which of the T' Q' queries they are.
        frames: (T,) which of the compressor's frames the map shows.
        query_grid: (T', Q').
        elsewhere: (R,) the share of all that was added which came from other tokens: queries, and the question's.
    """

    directions: tuple[str, ...]
    total: Tensor
    per_query: Tensor
    queries: Tensor
    frames: Tensor
    query_grid: tuple[int, int]
    elsewhere: Tensor


def last_scan(compressor: nn.Module | None) -> MambaBlock:
    """The last layer of a compressor that scans.

    Raises:
        BimbaError: it has none; the message names the compressors that have one.
    """
    if blocks := _scans(compressor):
        return blocks[-1]
    able = [
        name for name in compressors.names() if _scans(compressors.build_compressor({"name": name}, hidden_size=16))
    ]
    found = "no compressor" if compressor is None else f"a {type(compressor).__name__}, without such a scan"
    raise BimbaError(
        f"A selection map takes a scan apart, and this model has {found}. Give a checkpoint whose compressor is "
        f"one of: {', '.join(able)}."
    )


@contextmanager
def watch(compressor: nn.Module | None) -> Iterator[list[Watched]]:
    """While it lasts, every call of the compressor is added to the list; its last layer is not streamed.

    Raises:
        BimbaError: as :func:`last_scan`; and from the compressor's call, for a batch of several videos.
    """
    block = last_scan(compressor)
    seen: list[Watched] = []
    call: dict[str, Any] = {}

    def on_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call.update(_arguments(module, args, kwargs))

    def on_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        seen.append(_watched(block, call, _arguments(module, args, kwargs)))
        return args, {**kwargs, "pieces": ()}

    handles = [
        module.register_forward_pre_hook(hook, with_kwargs=True)
        for module, hook in ((compressor, on_call), (block, on_layer))
        if module is not None
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def selection_map(
    watched: Watched, queries: Sequence[int] | Tensor | None = None, measure: Measure = "change"
) -> SelectionMap:
    """What each token added to the queries.

    Args:
        queries: increasing numbers of those of the T' Q' queries to look at; None: all. Time grows with their number
            times that of the tokens, and so does the result.
        measure: "change": the length of what was added to the query, behind ``out_proj``. "gated": before it, which
            also tells tokens apart where ``out_proj`` is zero, as in a fresh compressor.
    """
    device, (T, H, W) = watched.tokens.device, watched.grid
    chosen = torch.arange(watched.queries.shape[1]) if queries is None else torch.as_tensor(queries)
    is_query = torch.zeros(watched.tokens.shape[1] + watched.queries.shape[1], dtype=torch.bool, device=device)
    is_query[watched.query_index] = True
    places = (~is_query).nonzero().squeeze(1)[watched.before :][: T * H * W]  # of the video's tokens
    gate, weight = query_gate(watched), _mixer(watched).out_proj.weight

    def length(x: Tensor) -> Tensor:
        """(D, q, t) -> (q, t)."""
        return (torch.tensordot(weight.to(x.dtype), x, 1) if measure == "change" else x).norm(dim=0)

    maps, elsewhere = [], []
    for number, inputs in enumerate(direction_inputs(watched)):
        rows, everything = [], 0.0
        for block in chosen.to(device).split(_BLOCK):
            scores = attribute(
                inputs.u, inputs.step, inputs.A, inputs.B, inputs.C[block], watched.query_index[block], length,
                gate=gate[block], taps=inputs.taps, passed=inputs.passed, reverse=number == 1,
            )  # fmt: skip
            everything += float(scores.sum())
            rows.append(scores[:, places].float().cpu())
        maps.append(torch.cat(rows).unflatten(1, (T, H, W)))
        elsewhere.append(1 - float(maps[-1].sum()) / everything if everything else 0.0)
    per_query = torch.stack(maps)
    return SelectionMap(
        directions=DIRECTIONS[: len(maps)],
        total=per_query.mean(1),
        per_query=per_query,
        queries=chosen.cpu(),
        frames=watched.frames,
        query_grid=watched.query_grid,
        elsewhere=torch.tensor(elsewhere),
    )


def direction_inputs(watched: Watched) -> Iterator[DirectionInputs]:
    """What the last layer's scan is given, one direction after the other."""
    return inputs_of(_mixer(watched), _sequence(watched), watched.query_index)


def query_gate(watched: Watched) -> Tensor:
    """(Q, D): what the layer multiplies the outputs of both directions by."""
    return gate_of(_mixer(watched), _sequence(watched), watched.query_index)


def spread_queries(num_queries: int, at_most: int) -> Tensor:
    """(K,) increasing numbers of queries: one drawn from each of K equal stretches, so that they favour no column."""
    if at_most >= num_queries:
        return torch.arange(num_queries)
    draws = torch.rand(at_most, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bounds = torch.arange(at_most + 1) * num_queries // at_most  # whole numbers: no query lies in two stretches
    return bounds[:-1] + (draws * bounds.diff()).long()


def _scans(compressor: nn.Module | None) -> list[MambaBlock]:
    modules = [] if compressor is None else compressor.modules()
    return [block for block in modules if isinstance(block, MambaBlock) and isinstance(block.mixer, ScanMixer)]


def _sequence(watched: Watched) -> Tensor:
    """(1, L, C): the layer's input behind its norm, queries among the tokens."""
    normed: Tensor = watched.block.norm(interleave(watched.tokens, watched.queries, watched.query_index))
    return normed


def _mixer(watched: Watched) -> ScanMixer:
    mixer = watched.block.mixer
    if not isinstance(mixer, ScanMixer):
        raise BimbaError(f"Expected a layer that scans, received one with a {type(mixer).__name__}.")
    return mixer


def _arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _watched(block: MambaBlock, call: dict[str, Any], layer: dict[str, Any]) -> Watched:
    """From the arguments of the compressor and of its last layer."""
    batch, num_frames, H, W, _ = call["space_time_tokens"].shape
    if batch != 1:
        raise BimbaError(f"A selection map is made of one video at a time, received a batch of {batch}.")
    tokens, queries = layer["tokens"].detach(), layer["queries"].detach()
    before, behind = _question_around(tokens, call.get("question"))
    of_video = tokens.shape[1] - before - behind
    frames = torch.arange(num_frames)
    while len(frames) > 1 and of_video < len(frames) * H * W:
        frames = frames[::2]  # as multi_scale drops them
    if of_video != len(frames) * H * W:
        raise BimbaError(
            f"The compressor's last layer has {of_video} tokens of {num_frames} frames of {H} x {W}, without the "
            f"{before + behind} of a question around them; a selection map cannot tell where they lie."
        )
    query_grid = (call["queries"].shape[1], call["queries"].shape[2])
    grid = (len(frames), H, W)
    return Watched(block, tokens, queries, layer["query_index"], before, grid, frames, query_grid)


def _question_around(tokens: Tensor, question: Tensor | None) -> tuple[int, int]:
    """How many tokens of a layer's (1, S, C) are the question in front, and how many the question behind."""
    if question is None:
        return 0, 0
    words, length = question.to(tokens.dtype), question.shape[1]
    before = length if torch.equal(tokens[:, :length], words) else 0
    return before, length if torch.equal(tokens[:, tokens.shape[1] - length :], words) else 0
