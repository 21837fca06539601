"""The Triton kernels compiled for GPUs that are not here: nothing spills, and a token costs few instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Instructions for a channel, state and token, where every token is a query (a fifth are): what Triton 3.8 makes, and a
# twentieth or tenth. On sm_90 forward 13.0, 8.9 at a fifth; backward 6.8 to recompute what is before a tile and for the
# tile 25.0, 19.0 at a fifth. On sm_80 shared memory takes 3 more backward.
MOST = {
    "forward": 14.0,
    "forward, every token": 14.0,
    "backward": 37.0,
    "backward, no D": 37.0,
    "chunk states": 8.0,
    "chunk gradients": 9.0,
}
FORWARDS = ("forward", "forward, every token", "chunk states")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What triton_sass.py prints: a dictionary a kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    command = [sys.executable, str(Path(__file__).with_name("triton_sass.py")), "80", "90"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 18
    return found


def describe(kernel):
    return f"{kernel['kernel']}, {kernel['element']}, sm_{kernel['architecture']}: {kernel}"


def test_nothing_spills(compiled):
    for kernel in compiled:
        assert 16 <= kernel["registers"] <= 255 and kernel["spilled"] == 0, describe(kernel)


def test_a_thread_has_few_registers_forwards(compiled):
    """So that all warps of a 7B layer run at once: 14 on a processor, which has 65,536 registers."""
    for kernel in compiled:
        if kernel["kernel"] in FORWARDS:
            assert kernel["registers"] <= 128, describe(kernel)


def test_no_warp_waits_for_another_forwards(compiled):
    for kernel in compiled:
        if kernel["kernel"] in FORWARDS:
            assert kernel["barriers"] == 0, describe(kernel)


def test_nothing_is_read_when_it_is_needed_forwards(compiled):
    """What the steps of a tile take is read in two places, far ahead: no step reads its own."""
    for kernel in compiled:
        if kernel["kernel"] == "forward":
            reads = kernel["reads before branches"]
            assert len(reads) > 16 and sum(count > 0 for count in reads) == 2, describe(kernel)


def test_addresses_are_64_bits_wide(compiled):
    for kernel in compiled:
        assert kernel["addresses"] == ["%rd"], describe(kernel)
        assert kernel["wide multiplications"] >= 4, describe(kernel)


def test_a_token_costs_few_instructions(compiled):
    for kernel in compiled:
        if kernel["kernel"] in MOST:
            # The walk over whole tiles is the longest loop; the backward kernel has one more, to recompute states.
            loops = kernel["instructions"]
            count = sum(loops) if kernel["kernel"].startswith("backward") else max(loops)
            assert 4 < count <= MOST[kernel["kernel"]], describe(kernel)
