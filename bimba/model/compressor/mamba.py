"""Step [4]: queries are placed among the space-time tokens, selective scans run over all, the queries are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bimba.model.attention import AttentionMixer
from bimba.model.block import MambaBlock, Mixer
from bimba.model.compressor._base import Compressor, Product, check_sizes
from bimba.model.compressor._question import Led, lead, warn_of_one_layer
from bimba.model.mamba import MambaMixer
from bimba.ops import deinterleave, queries_before, query_positions
from bimba.types import BimbaError

STREAM_ABOVE = 2**16  # positions; 64 frames of 27 x 27 patches with 14 x 14 queries each are 59,200
# On a CPU without gradients: from there on it is quicker, too, for the same memory serves all pieces. New memory has to
# be cleared by the system first, page by page.
STREAM_INFERENCE_ABOVE = 2**14
_AUTO_CHUNK = 4096


class MambaCompressor(Compressor):
    """BIMBA's token compressor.

    Args:
        hidden_size: C, of tokens and queries.
        num_layers: blocks; every one but the last keeps all positions.
        d_state: N, state entries per channel.
        d_conv: taps of the convolution in front of the scan.
        expand: inner channels D = expand * C.
        query_position: "interleaved" spreads the queries evenly over the sequence, "appended" puts them behind it.
        bidirectional: scan backward as well as forward.
        backward_init: "original" starts the backward direction as the original does, with steps of 0.5 to 1, so that it
            forgets within a few positions; "forward" starts it as the forward direction, with 0.001 to 0.1.
        multi_scale: between layers, drop every second frame of the space-time tokens.
        norm: RMSNorm in front of each mixer.
        residual: add each mixer's input to its output.
        mixer: "mamba", or "attention" to compare with; a subclass may give a function that makes another scan.
        scan_backend: "auto" or a backend of :func:`bimba.ops.selective_scan`.
        chunk_tokens: how many positions of the sequence are in work at a time; a number streams the sequence in pieces,
            with memory that does not grow with it (but for tokens and queries) for about a third more time; 0: all at
            once; "auto": pieces of 4,096 if there are more than ``STREAM_ABOVE`` positions, or without gradients on a
            CPU more than ``STREAM_INFERENCE_ABOVE``.
        question_conditioned: the embedded question leads the sequence of every layer, in each direction, so that what
            the scans keep depends on what is asked. With one layer the question adds to what queries hold, but does
            not change which tokens are selected; that takes two.
    """

    selects_behind_layers: ClassVar[bool] = False  # a subclass does: with one layer, too, it selects by the question

    def __init__(
        self,
        hidden_size: int,
        num_layers: int = 1,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        query_position: Literal["interleaved", "appended"] = "interleaved",
        bidirectional: bool = True,
        multi_scale: bool = True,
        norm: bool = True,
        residual: bool = True,
        mixer: Literal["mamba", "attention"] | Callable[[], Mixer] = "mamba",
        scan_backend: str = "auto",
        chunk_tokens: int | Literal["auto"] = "auto",
        question_conditioned: bool = False,
        backward_init: Literal["original", "forward"] = "original",
    ) -> None:
        super().__init__(hidden_size, question_conditioned)
        _check_choice("backward_init", backward_init, ("original", "forward"))
        _check_choice("query_position", query_position, ("interleaved", "appended"))
        if not callable(mixer):
            _check_choice("mixer", mixer, ("mamba", "attention"))
        is_number = isinstance(chunk_tokens, int) and not isinstance(chunk_tokens, bool)
        if chunk_tokens != "auto" and (not is_number or chunk_tokens < 0):
            raise BimbaError(f'compressor option chunk_tokens must be "auto", 0 or more, received {chunk_tokens!r}.')
        if mixer == "attention" and chunk_tokens not in ("auto", 0):
            raise BimbaError(
                f"compressor option chunk_tokens={chunk_tokens}: attention sees all tokens at once and cannot be "
                'streamed; use mixer="mamba", or chunk_tokens=0.'
            )
        check_sizes(num_layers=num_layers, d_state=d_state, d_conv=d_conv, expand=expand)
        if question_conditioned and num_layers == 1 and not self.selects_behind_layers:
            warn_of_one_layer()
        self.query_position = query_position
        self.mixer = mixer
        self.chunk_tokens = chunk_tokens
        self.multi_scale = multi_scale
        self.from_both_ends = bidirectional and mixer != "attention"  # attention starts nowhere

        def make_mixer() -> Mixer:
            if not isinstance(mixer, str):
                return mixer()
            if mixer == "attention":
                return AttentionMixer(hidden_size, expand)
            return MambaMixer(hidden_size, d_state, d_conv, expand, bidirectional, scan_backend, backward_init)

        self.layers = nn.ModuleList(MambaBlock(make_mixer(), hidden_size, norm, residual) for _ in range(num_layers))

    def forward(self, space_time_tokens: Tensor, queries: Tensor, question: Tensor | None = None) -> Tensor:
        """(B, T, H, W, C), (B, T', Q', C), (B, P, C) -> (B, T', Q', C) in the queries' dtype, computed in the weights'.

        ``question`` comes if and only if the compressor is ``question_conditioned``.
        """
        self.check(space_time_tokens, queries, question)
        dtype = self.layers[0].get_parameter("mixer.in_proj.weight").dtype  # some parameters may be wider: IN_FLOAT32
        grid = space_time_tokens.to(dtype)  # (B, T, H, W, C)
        compressed = queries.to(dtype).flatten(1, 2)  # (B, Q, C)
        for number, layer in enumerate(self.layers, start=1):
            tokens = grid.flatten(1, 3)  # (B, S, C)
            query_index = self.query_index(tokens.shape[1], compressed.shape[1]).to(tokens.device)
            led = lead(tokens, question, self.from_both_ends)  # each layer starts with the question as it was asked
            query_index = query_index + led.before
            pieces = self._pieces(led, compressed.shape[1])
            if number == len(self.layers):
                compressed = layer(led.tokens, compressed, query_index, pieces=pieces)
                break
            combined = layer(led.tokens, compressed, query_index, everything=True, pieces=pieces)
            tokens, compressed = deinterleave(combined, query_index)
            grid = led.strip(tokens).unflatten(1, grid.shape[1:4])
            if self.multi_scale:
                grid = grid[:, ::2]
        return compressed.view(queries.shape).to(queries.dtype)

    def products(self, grid: tuple[int, int, int], queries: tuple[int, int]) -> Iterator[Product]:
        """As of every compressor; the last layer is read at the queries only."""
        num_queries = prod(queries)
        frames, rows, columns = grid
        for number, layer in enumerate(self.layers, start=1):
            length = frames * rows * columns + num_queries
            mixer: Any = layer.mixer
            yield from mixer.products(length, num_queries if number == len(self.layers) else length)
            if self.multi_scale:
                frames = (frames + 1) // 2

    def _pieces(self, led: Led, num_queries: int) -> list[tuple[int, int]]:
        """How many tokens and queries each piece of the sequence has; none if it is not streamed."""
        length, size, device = led.tokens.shape[1] + num_queries, self.chunk_tokens, led.tokens.device
        if size == "auto":
            inference = device.type == "cpu" and not torch.is_grad_enabled()
            above = STREAM_INFERENCE_ABOVE if inference else STREAM_ABOVE
            size = _AUTO_CHUNK if length > above and self.mixer != "attention" else 0
        if size == 0:
            return []
        num_space_time = led.tokens.shape[1] - led.before - led.after
        bounds = [*range(0, length, size), length]
        before = [self._queries_before(bound - led.before, num_space_time, num_queries) for bound in bounds]
        pairs = zip(zip(bounds, bounds[1:], strict=False), zip(before, before[1:], strict=False), strict=True)
        return [(stop - start - (after - b), after - b) for (start, stop), (b, after) in pairs]

    def _queries_before(self, position: int, num_space_time: int, num_queries: int) -> int:
        if self.query_position == "appended":
            return min(max(0, position - num_space_time), num_queries)
        return queries_before(position, num_space_time, num_queries)

    def query_index(self, num_space_time: int, num_queries: int) -> Tensor:
        """Positions (Q,) of the queries in the sequence of S + Q tokens, without the question."""
        if self.query_position == "appended":
            return torch.arange(num_space_time, num_space_time + num_queries)
        return query_positions(num_space_time, num_queries)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BimbaError(f"compressor option {name}={value!r} is unknown; choose one of: {', '.join(choices)}.")


COMPRESSOR = MambaCompressor
