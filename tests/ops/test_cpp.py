"""The compiled scan against the reference in float64, every gradient."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_selective_scan import QUERIES, assert_same, make_inputs, run

from bimba.ops import selective_scan
from bimba.ops.selective_scan import REGISTRY, cpp, scan_directions
from bimba.ops.selective_scan.inputs import Scan
from bimba.types import BimbaError

TOLERANCE = 1e-5  # of the largest value
ROOT = Path(__file__).parents[2]


def compare(inputs, tolerance=TOLERANCE, dtype=torch.float32, **options):
    """The compiled scan of inputs in ``dtype`` and the reference of the very same numbers in float64."""
    rounded = {
        name: x.to(dtype if name in ("u", "delta", "B", "C", "z") else torch.float32) for name, x in inputs.items()
    }
    exact = {name: x.double() for name, x in rounded.items()}
    assert_same(run(rounded, backend="cpp", **options), run(exact, backend="reference", **options), tolerance)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("queries", QUERIES)
def test_at_queries(reverse, queries):
    positions = QUERIES[queries]
    inputs = make_inputs((2, 6, 3, 150), None if positions is None else len(positions))
    index = None if positions is None else torch.tensor(positions, dtype=torch.int64)
    compare(inputs, delta_softplus=True, reverse=reverse, query_index=index)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("absent", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_without_options(softplus, absent):
    inputs = {name: x for name, x in make_inputs((3, 5, 4, 7)).items() if name not in absent}
    inputs["delta"] = inputs["delta"].abs()
    compare(inputs, delta_softplus=softplus)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("channels", [1, 16, 17, 48])
@pytest.mark.parametrize("states", [1, 3, 4, 8, 13, 16, 21, 32])
def test_any_number_of_channels_and_states(channels, states, reverse):
    compare(make_inputs((2, channels, states, 70)), delta_softplus=True, reverse=reverse)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
def test_any_length(length):
    compare(make_inputs((1, 5, 4, length)), delta_softplus=True)


def test_groups_of_channels():
    inputs = make_inputs((2, 6, 4, 20))
    inputs |= {name: torch.stack([inputs[name], -inputs[name]], dim=1) for name in ("B", "C")}
    compare(inputs, delta_softplus=True)


def test_bfloat16_inputs_are_read_as_they_are():
    compare(make_inputs((2, 20, 16, 130)), tolerance=2e-2, dtype=torch.bfloat16, delta_softplus=True)


def test_half_inputs_keep_their_dtype():
    inputs = {name: x.half() for name, x in make_inputs((1, 5, 4, 9)).items()}
    y = selective_scan(**inputs, delta_softplus=True, backend="cpp")
    assert y.dtype == torch.float16


@pytest.mark.parametrize("layout", ["(B, D, L)", "(B, L, D)", "every second channel", "flipped batch"])
def test_any_strides(layout):
    inputs = {name: x.float() for name, x in make_inputs((2, 6, 4, 30)).items()}
    expected = run(inputs, backend="cpp", delta_softplus=True)
    for name in ("u", "delta", "B", "C", "z"):
        x = inputs[name]
        if layout == "(B, L, D)":
            inputs[name] = x.transpose(1, 2).contiguous().transpose(1, 2)
        elif layout == "every second channel":
            inputs[name] = x.repeat_interleave(2, dim=1)[:, ::2]
        elif layout == "flipped batch":
            inputs[name] = x.flip(0).contiguous().flip(0)
    assert_same(run(inputs, backend="cpp", delta_softplus=True), expected, 1e-6)


def test_no_samples_and_no_queries():
    inputs = {name: x.float() for name, x in make_inputs((0, 5, 4, 9)).items()}
    assert run(inputs, backend="cpp")["y"].shape == (0, 5, 9)
    inputs = {name: x.float() for name, x in make_inputs((2, 5, 4, 9), 0).items()}
    found = run(inputs, backend="cpp", query_index=torch.zeros(0, dtype=torch.int64))
    assert all(not x.any() for x in found.values())


def test_a_very_long_sequence():
    """2^27 steps of one token that never changes: only the sequence is long, not the memory."""
    length = 2**27 + 2**16
    token = torch.full((1, 1, 16), 0.5)
    u, one = token.expand(1, length, 16).transpose(1, 2), torch.ones(1, 1, 1).expand(1, 1, length)
    queries = torch.tensor([0, length - 1])
    y = selective_scan(u, u, -torch.ones(16, 1), one, torch.ones(1, 1, 2), query_index=queries, backend="cpp")
    limit = 0.25 / (1 - math.exp(-0.5))
    torch.testing.assert_close(y[0, :, 0], torch.full((16,), 0.25))
    torch.testing.assert_close(y[0, :, 1], torch.full((16,), limit), rtol=1e-5, atol=0)


@pytest.mark.parametrize("axis", ["samples", "tokens"])
@pytest.mark.parametrize("reverse", [False, True])
def test_offsets_beyond_32_bits(axis, reverse):
    """Rows that lie 2^30 elements apart, the last one beyond 2^31; the memory between them is never touched.

    Reversed, a tile begins at the last row, not at the first.
    """
    inputs = {name: x.to(torch.bfloat16) for name, x in make_inputs((3, 16, 4, 3)).items() if name != "z"}
    options = {"delta_softplus": True, "reverse": reverse, "backend": "cpp"}
    expected = selective_scan(**inputs, **options)
    far = 2**30 + 8
    strides = (far, 16, 1) if axis == "samples" else (64, far, 1)
    u = torch.empty(2 * far + 256, dtype=torch.bfloat16).as_strided((3, 3, 16), strides)
    u.copy_(inputs["u"].transpose(1, 2))
    y = selective_scan(**inputs | {"u": u.transpose(1, 2)}, **options)
    assert torch.equal(y, expected)


def rows(shape, queries, dtype=torch.float32):
    """Inputs of both directions, numbers that ``dtype`` has, as :func:`scan_directions` takes them."""
    batch, channels, states, length = shape
    outputs = length if queries is None else len(queries)
    made = [make_inputs(shape, outputs, seed=seed) for seed in (1, 2)]
    inputs = {
        name: torch.stack([x[name].mT if x[name].dim() == 3 else x[name] for x in made]).to(dtype)
        for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")
    }
    initial_state = torch.randn(2, batch, channels, states, generator=torch.Generator().manual_seed(3))
    return inputs | {"initial_state": initial_state.to(dtype)}


def run_rows(inputs, **options):
    """y, the last state, and the gradient of every input, where both outputs have one."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    outputs = scan_directions(**leaves, **options)
    generator = torch.Generator().manual_seed(7)
    cotangents = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in outputs]
    torch.autograd.backward(outputs, cotangents)
    found = {"y": outputs[0], "last_state": outputs[1]}
    found |= {f"d{name}": torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()}
    return {name: x.detach().double() for name, x in found.items()}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("queries", QUERIES)
@pytest.mark.parametrize("channels", [5, 48])
def test_both_directions_with_states(channels, queries, reverse):
    positions = QUERIES[queries]
    inputs = rows((2, channels, 17, 150), positions)
    index = None if positions is None else torch.tensor(positions, dtype=torch.int64)
    options = {"query_index": index, "delta_softplus": True, "reverse": reverse}
    exact = {name: x.double() for name, x in inputs.items()}
    expected = run_rows(exact, backend="reference", **options)
    assert_same(run_rows(inputs, backend="cpp", **options), expected, TOLERANCE)


@pytest.mark.parametrize("reverse", [False, True])
def test_piece_by_piece(reverse):
    """Cut where no tile ends; the second direction of one call runs the other way, so one direction only."""
    inputs = {name: x[:1] for name, x in rows((2, 20, 16, 150), None).items()}
    options = {"delta_softplus": True, "reverse": reverse, "backend": "cpp"}
    y, last_state = scan_directions(**inputs, **options)
    pieces, state = [], inputs["initial_state"]
    cuts = [slice(0, 37), slice(37, 37), slice(37, 101), slice(101, 150)]
    for cut in reversed(cuts) if reverse else cuts:
        piece = {name: x[:, :, cut] if name in ("u", "delta", "B", "C") else x for name, x in inputs.items()}
        part, state = scan_directions(**piece | {"initial_state": state}, **options)
        pieces.append(part)
    joined = torch.cat(pieces[::-1] if reverse else pieces, dim=2)
    assert_same({"y": joined, "state": state}, {"y": y, "state": last_state}, 1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 4, 0), (2, 0, 4, 70), (0, 5, 4, 70)])
def test_nothing_to_scan(shape):
    inputs = rows(shape, None)
    found = run_rows(inputs, backend="cpp", delta_softplus=True)
    expected = run_rows({name: x.double() for name, x in inputs.items()}, backend="reference", delta_softplus=True)
    assert_same(found, expected, TOLERANCE)


def test_another_default_device_changes_nothing():
    inputs = {name: x.float() for name, x in make_inputs((1, 5, 4, 9)).items()}
    expected = run(inputs, backend="cpp")
    with torch.device("meta"):
        y = selective_scan(**inputs, backend="cpp")
    torch.testing.assert_close(y.double(), expected["y"])
    with pytest.raises(BimbaError, match="query_index is on meta, u on cpu"):
        selective_scan(**inputs, query_index=torch.zeros(9, dtype=torch.int64, device="meta"), backend="cpp")


FORK = """
import os, torch
from bimba.ops import selective_scan
torch.set_num_threads(2)
x = torch.ones(1, 64, 100)
scan = lambda: selective_scan(x, x, -torch.ones(64, 4), torch.ones(1, 4, 100), torch.ones(1, 4, 100), backend="cpp")
scan()
child = os.fork()
if child == 0:
    scan()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_does_not_wait_for_threads_of_its_parent():
    done = subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "7\n", done.stderr


@pytest.mark.parametrize("batch", [1, 3])
def test_threads_change_nothing(batch):
    inputs = {name: x.float() for name, x in make_inputs((batch, 70, 16, 90)).items()}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(inputs, backend="cpp", delta_softplus=True)
        torch.set_num_threads(4)
        found = run(inputs, backend="cpp", delta_softplus=True)
    finally:
        torch.set_num_threads(threads)
    assert_same(found, expected, 1e-6)


def test_float64_is_refused_and_auto_goes_on():
    inputs = make_inputs((1, 2, 3, 4))
    with pytest.raises(
        BimbaError, match="'cpp' was asked for but cannot run: it computes in float32, an input is float64"
    ):
        selective_scan(**inputs, backend="cpp")
    assert selective_scan(**inputs).dtype == torch.float64


def test_auto_prefers_it():
    inputs = {name: x.float()[None] for name, x in make_inputs((1, 2, 3, 4)).items()}
    rows = [inputs[name].mT for name in ("u", "delta", "B", "C")]
    call = Scan(*rows[:2], inputs["A"], *rows[2:], None, None, None, None, delta_softplus=True, reverse=False)
    assert REGISTRY.choose("auto", call) is cpp.BACKEND
