"""How the Triton scan is cut into programs, and where it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_triton import DEVICE, make_inputs, poisoned_memory, small_blocks

from bimba.ops.selective_scan import REGISTRY, scan_directions
from bimba.ops.selective_scan import triton as backend
from bimba.ops.selective_scan.gpu import plan
from bimba.ops.selective_scan.inputs import Scan
from bimba.types import BimbaError

__all__ = ["poisoned_memory", "small_blocks"]  # fixtures
ROOT = Path(__file__).parents[2]


def test_without_gradients_nothing_is_saved():
    inputs = make_inputs(2, 2, 9, 5, 3)
    call = Scan(**inputs, query_index=None, delta_softplus=True, reverse=False)
    y, last, saved = backend.forward(call, save=False)
    assert saved.shape == (0,)
    y_too, last_too, saved = backend.forward(call, save=True)
    assert (
        saved.shape == backend.BACKEND.saved_shape(call) == (2, 2, 1, 1, 4, 32)
    )  # a block of 32 channels, 3 states in 4 places
    assert torch.equal(y, y_too) and torch.equal(last, last_too)


def test_the_next_query_at_each_block(small_blocks):
    queries = torch.tensor([0, 7, 8, 12, 20], device=DEVICE)
    assert plan.next_query(queries, 21, 3).tolist() == [[0, 2, 4, 5], [4, 3, 0, -1]]


def test_the_queries_as_bits():
    queries = torch.tensor([0, 7, 8, 12, 20], device=DEVICE)
    forwards, backwards = plan.query_bits(queries, 21, 8).tolist()
    assert forwards == [2**0 + 2**7, 2**0 + 2**4, 2**4, 0]
    assert backwards == [2**0, 2**0 + 2**4 + 2**5, 2**4, 0]  # steps 0, 8, 12, 13, 20


@pytest.mark.parametrize(
    ("R", "D", "L", "chunks", "backward"),
    [
        (2, 7168, 59200, 1, 1), (1, 7168, 59200, 1, 5), (2, 1024, 59200, 8, 17), (2, 512, 100, 2, 2), (1, 1, 64, 1, 1),
    ],
)  # fmt: skip
def test_chunks_where_there_are_few_programs(R, D, L, chunks, backward):
    u, A = torch.zeros(R, 1, L, D, device="meta"), torch.zeros(R, D, 16, device="meta")
    tokens = torch.zeros(R, 1, L, 16, device="meta")
    call = Scan(u, u, A, tokens, tokens, None, None, None, None, delta_softplus=True, reverse=False)
    for found, wanted in (
        (plan.make_plan(call, processors=132), chunks),
        (plan.make_plan(call, processors=132, backward=True), backward),
    ):
        assert found.chunks == wanted and found.chunk % plan.BLOCK == 0
        assert (found.chunks - 1) * found.chunk < L <= found.chunks * found.chunk


def test_float64_is_refused():
    inputs = {name: x.double() for name, x in make_inputs(1, 1, 3, 2, 2).items()}
    with pytest.raises(BimbaError, match="'triton' was asked for but cannot run: it computes in float32"):
        scan_directions(**inputs, backend="triton")


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter is for machines without CUDA")
def test_auto_never_takes_the_interpreter():
    call = Scan(**make_inputs(1, 1, 3, 2, 2), query_index=None, delta_softplus=True, reverse=False)
    assert backend.BACKEND.priority < 0
    assert REGISTRY.choose("auto", call) is not backend.BACKEND


def test_other_devices_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs = {name: x.cpu() for name, x in make_inputs(1, 1, 3, 2, 2).items()}
    call = Scan(**inputs, query_index=None, delta_softplus=True, reverse=False)
    assert backend.BACKEND.refuses(call) == "it runs on CUDA devices, the inputs are on cpu"


MISSING = """
import sys
sys.modules["triton"] = None  # as if it were not installed
"""


BROKEN = """
import sys, torch
class Finder:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "triton":
            raise RuntimeError("libtriton.so is of another Python\\nand more")
sys.modules.pop("triton", None)
sys.meta_path.insert(0, Finder())
"""


ASK = """
from bimba.ops import causal_conv1d, selective_scan
from bimba.ops.causal_conv1d.op import REGISTRY as CONVOLUTION
from bimba.ops.selective_scan.op import REGISTRY as SCAN
for registry in (SCAN, CONVOLUTION):
    print(registry.backends["triton"].unavailable())
"""


@pytest.mark.parametrize(
    ("triton", "reason", "remedy"),
    [
        (MISSING, "Triton or a part of it is not installed (", "pip install triton"),
        (
            BROKEN,
            "Triton cannot be imported (libtriton.so is of another Python)",
            "pip install --force-reinstall torch triton",
        ),
    ],
    ids=["missing", "broken"],
)
def test_a_machine_without_triton_is_told_what_to_install(triton, reason, remedy):
    done = subprocess.run([sys.executable, "-c", triton + ASK], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    scan, convolution = done.stdout.splitlines()
    assert scan == convolution
    assert scan.startswith(reason) and remedy in scan


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a CUDA device")
def test_a_machine_without_cuda_is_told_so():
    code = 'from bimba.ops.selective_scan import REGISTRY; print(REGISTRY.backends["triton"].unavailable())'
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "there is no CUDA device here; to test the kernels on the CPU set TRITON_INTERPRET=1\n"
