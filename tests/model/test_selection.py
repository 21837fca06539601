"""The map of a compressor's last scan, against what the layer computes."""

from __future__ import annotations

import pytest
import torch

from bimba.model.compressor import Compressor, MambaCompressor, PoolCompressor
from bimba.model.compressor.mamba2 import Mamba2Compressor
from bimba.model.selection import direction_inputs, query_gate, selection_map, spread_queries, watch
from bimba.ops import interleave, query_positions
from bimba.ops.selective_scan.attribution import attribute
from bimba.types import BimbaError

C, GRID, QUERIES = 16, (4, 3, 2), (2, 3)


def compressor(kind=MambaCompressor, **options) -> MambaCompressor:
    """Random weights that add something to the queries."""
    torch.manual_seed(0)
    made = kind(C, d_state=4, **options)
    for layer in made.layers:
        torch.nn.init.normal_(layer.mixer.out_proj.weight)
    return made.eval()


def media(T=GRID[0]):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(1, T, *GRID[1:], C, generator=generator), torch.randn(1, *QUERIES, C, generator=generator))


def watched(made, *inputs):
    with torch.no_grad(), watch(made) as seen:
        output = made(*inputs)
    return seen[-1], output


def skip(mixer, sequence, number):
    """(L, D): what a direction's scan hands past its state."""
    directions = mixer.directions((number,))
    u = mixer.convolve(mixer.inner(sequence), directions)[0, 0, :, : mixer.d_inner]
    D = directions.D[0]
    return D.repeat_interleave(mixer.d_inner // len(D)) * u


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bidirectional": False},
        {"query_position": "appended"},
        {"num_layers": 2},
        {"kind": Mamba2Compressor, "head_dim": 8},
        {"kind": Mamba2Compressor, "head_dim": 64, "bidirectional": False, "num_layers": 2},
    ],
)
@torch.no_grad()
def test_what_tokens_add_is_what_the_layer_adds(options):
    """With the skip of the queries, and without the convolution's bias, which belongs to no token."""
    made = compressor(residual=False, **options)
    last = made.layers[-1].mixer
    for name, parameter in last.named_parameters():
        if name in ("conv1d.bias", "conv1d_b.bias"):
            parameter.zero_()
        if name in ("D", "D_b", "norm.weight"):
            parameter.copy_(torch.randn_like(parameter))
    seen, output = watched(made, *media())
    gate, weight = query_gate(seen), last.out_proj.weight
    direction = torch.randn(C)  # what is added in it, as a number
    sequence = made.layers[-1].norm(interleave(seen.tokens, seen.queries, seen.query_index))
    skipped = sum(
        gate * skip(last, sequence, number)[seen.query_index] for number in range(1 + last.bidirectional)
    )  # fmt: skip
    added = skipped @ weight.T @ direction + sum(
        attribute(
            one.u, one.step, one.A, one.B, one.C, seen.query_index, lambda x: torch.tensordot(direction @ weight, x, 1),
            gate=gate, taps=one.taps, passed=one.passed, reverse=number == 1,
        ).sum(1)
        for number, one in enumerate(direction_inputs(seen))
    )  # fmt: skip
    torch.testing.assert_close(added, output.flatten(0, 2) @ direction, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [MambaCompressor, Mamba2Compressor])
def test_tokens_lie_where_they_came_from(kind):
    """A token that alone is not zero is all that is selected of the video."""
    made = compressor(kind, norm=False)
    tokens, queries = torch.zeros(1, *GRID, C), media()[1]
    tokens[0, 2, 1, 1] = 5.0
    selected = selection_map(watched(made, tokens, queries)[0])
    assert selected.directions == ("forward", "backward")
    assert selected.total.shape == (2, *GRID)
    where = torch.zeros(GRID, dtype=torch.bool)
    where[2, 1, 1] = True
    for total in selected.total:
        assert total[where] > 0
        assert (total[~where] == 0).all()
    assert (selected.elsewhere > 0).all()  # the queries write, too
    assert (selected.elsewhere < 1).all()


@pytest.mark.parametrize("at_both_ends", [False, True])
def test_a_question_around_the_video(at_both_ends):
    """As it stands in the sequence of a compressor that is conditioned on it."""

    class Asked(Compressor):
        def __init__(self):
            super().__init__(C, question_conditioned=True)
            self.layer = compressor(norm=False).layers[0]

        def forward(self, space_time_tokens, queries, question=None):
            tokens = torch.cat(
                [question, space_time_tokens.flatten(1, 3), *([question] if at_both_ends else [])], dim=1
            )
            index = query_positions(tokens.shape[1] - 10, queries.shape[1] * queries.shape[2]) + 5
            return self.layer(tokens, queries.flatten(1, 2), index).view(queries.shape)

    tokens, queries = torch.zeros(1, *GRID, C), media()[1]
    tokens[0, 1, 2, 0] = 5.0
    selected = selection_map(watched(Asked(), tokens, queries, torch.randn(1, 5, C))[0])
    assert selected.total.sum(0).nonzero().tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("length", [1, 6, 12, 40])
def test_a_question_of_any_length_around_fewer_frames(length):
    """Two frames are left for the second layer; 6 words are a frame, 12 are two, and 40 are more than the video."""
    made = compressor(num_layers=2, question_conditioned=True)
    seen, _ = watched(made, *media(), torch.randn(1, length, C))
    assert (seen.before, seen.frames.tolist()) == (length, [0, 2])
    assert seen.tokens.shape[1] == 2 * length + 2 * GRID[1] * GRID[2]


@pytest.mark.parametrize(("num_layers", "differs"), [(1, False), (2, True)])
def test_a_question_changes_what_is_selected_from_two_layers_on(num_layers, differs):
    made = compressor(num_layers=num_layers, question_conditioned=True)
    one, other = (
        selection_map(watched(made, *media(T=8), torch.full((1, 5, C), value))[0]).per_query[:, :, 1:-1]
        for value in (-1.0, 1.0)
    )  # without the first and the last frame, which the convolution sees together with the question
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-6) != differs


def test_a_selection_of_queries_and_the_mean_of_all():
    seen, _ = watched(compressor(), *media())
    everything = selection_map(seen)
    torch.testing.assert_close(everything.total, everything.per_query.mean(1))
    some = selection_map(seen, queries=[1, 4])
    torch.testing.assert_close(some.per_query, everything.per_query[:, [1, 4]])
    assert some.query_grid == QUERIES


def test_inner_layers_that_drop_frames():
    """multi_scale keeps every second frame for the second layer, and every fourth for the third."""
    seen, _ = watched(compressor(num_layers=3), *media(T=5))
    assert seen.frames.tolist() == [0, 4]
    assert selection_map(seen).total.shape == (2, 2, *GRID[1:])


def test_before_out_proj_a_fresh_compressor_has_a_map_too():
    made = compressor()
    torch.nn.init.zeros_(made.layers[-1].mixer.out_proj.weight)
    seen, _ = watched(made, *media())
    assert (selection_map(seen).total == 0).all()
    assert (selection_map(seen).elsewhere == 0).all()
    assert (selection_map(seen, measure="gated").total.sum(0) > 0).all()


def test_a_streamed_compressor_is_watched_whole():
    inputs = media()
    seen, output = watched(compressor(chunk_tokens=5), *inputs)
    torch.testing.assert_close(output, compressor(chunk_tokens=0)(*inputs))
    torch.testing.assert_close(selection_map(seen).total, selection_map(watched(compressor(), *inputs)[0]).total)


def test_a_compressor_without_a_scan_names_those_that_have_one():
    for made, found in (
        (PoolCompressor(C), "a PoolCompressor"),
        (compressor(mixer="attention"), "a Mamba"),
        (None, "no"),
    ):
        with pytest.raises(BimbaError, match=rf"this model has {found}.*is one of: .*\bmamba\b"), watch(made):
            pass


def test_one_video_at_a_time():
    with pytest.raises(BimbaError, match="received a batch of 2"), watch(made := compressor()):
        made(*(x.expand(2, *x.shape[1:]) for x in media()))
    made(*(x.expand(2, *x.shape[1:]) for x in media()))  # nobody watches any more


def test_queries_are_spread_over_all():
    assert spread_queries(5, 128).tolist() == list(range(5))
    some = spread_queries(1000, 10)
    assert (some // 100).tolist() == list(range(10))
    assert len(set((some % 100).tolist())) > 5  # not a column of the grid


@pytest.mark.parametrize("num_queries", [129, 144, 200, 255])
def test_no_query_is_drawn_twice(num_queries):
    """Where a stretch is less than two queries long."""
    drawn = spread_queries(num_queries, 128)
    assert (drawn.diff() > 0).all() and drawn[-1] < num_queries
