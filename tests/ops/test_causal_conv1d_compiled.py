"""The compiled convolution's threads and other processors; its Triton kernels, compiled for GPUs that are not here."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_causal_conv1d as conv
import torch
from test_causal_conv1d import compare, few_tiles, make_inputs, nan_in_new_memory

from bimba.ops import extension
from bimba.ops.causal_conv1d import cpp

__all__ = ["few_tiles", "nan_in_new_memory"]  # fixtures
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("batch", [1, 3])
def test_threads_change_nothing(batch: int) -> None:
    inputs = make_inputs(batch, 200, 20, 4)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            compare("cpp", inputs)
    finally:
        torch.set_num_threads(threads)


def test_a_processor_without_avx512_and_openmp_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIMBA_CACHE_DIR", str(tmp_path))
    here = ("-march=native", "-fopenmp")  # and without OpenMP, as on macOS: with threads of its own
    monkeypatch.setattr(extension, "FLAGS", (*(flag for flag in extension.FLAGS if flag not in here), "-pthread"))
    monkeypatch.setattr(extension, "_THREADS", "-pthread")
    library = cpp._build("bimba_conv_portable")
    monkeypatch.setattr(cpp, "_library", lambda: library)
    monkeypatch.setattr(cpp, "_threads", lambda: 2)
    for width in (3, 4):
        compare("cpp", make_inputs(2, 140, 20, width))
        compare("cpp", make_inputs(1, 140, 20, width, dtype=torch.bfloat16))
    conv.test_large_values_saturate("cpp")
    conv.test_what_is_not_finite_spreads_as_in_pytorch("cpp", math.inf)
    conv.test_what_is_not_finite_spreads_as_in_pytorch("cpp", math.nan)


FORK = """
import os, torch
from bimba.ops import bidirectional_conv1d
torch.set_num_threads(2)
conv = lambda: bidirectional_conv1d(torch.ones(1, 500, 16), torch.ones(2, 16, 4), None, True, backend="cpp")
conv()
child = os.fork()
if child == 0:
    conv()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_does_not_wait_for_threads_of_its_parent() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "7\n", done.stderr


COMPILE = """
import itertools, re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bimba.ops.causal_conv1d import triton as backend
from bimba.ops.causal_conv1d.gpu import kernels

KERNELS = ((kernels.forward_kernel, backend._FORWARD), (kernels.backward_kernel, backend._BACKWARD))
for (kernel, tile), element in itertools.product(KERNELS, ("*bf16", "*fp32")):
    options = {"num_warps": tile["num_warps"]}
    constants = {"R": 2, "W": 4, "REVERSE": False, "SILU": True, "BIAS": True}
    constants |= {name: tile[name] for name in ("T", "C", "STEPS")}
    types = {name: element for name in ("x", "y", "dy", "dx")} | {name: "*fp32" for name in ("weight", "bias", "sums")}
    types |= {name: "i32" for name in ("B", "L", "D", "stride_b", "stride_l")}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = [i for i, name in enumerate(kernel.arg_names) if name not in constants and name not in ("B", "L")]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    compiled = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage, code = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "-sass")
        )
    instructions = len(re.findall(r"^ +/\\*[0-9a-f]+\\*/ ", code, re.MULTILINE))
    per_thread = tile["T"] * tile["C"] / (32 * tile["num_warps"])
    print(*re.search(r"STACK:(\\d+) .*LOCAL:(\\d+)", usage).groups(), instructions / per_thread)
"""


@pytest.mark.parametrize("architecture", [80, 90])
def test_kernels_compile_without_spills_to_few_instructions(architecture: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, str(architecture)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    # In all, for one token and channel of a step; with Triton 3.8 at most 87 forward, 137 backward.
    for line, most in zip(lines, (100, 100, 160, 160)):
        stack, local, instructions = line.split()
        assert stack == local == "0", line  # nothing spilt
        assert 20 < float(instructions) <= most, line
