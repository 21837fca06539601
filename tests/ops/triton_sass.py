"""Compiles the scan's Triton kernels for GPUs that are not here and prints what came out, a JSON object a line.

A program of its own, because Triton compiles nothing in a process where it interprets. Run by test_triton_compile.py::

    python tests/ops/triton_sass.py 80 90
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bimba.ops.selective_scan.gpu import backward, chunks, common, forward, launch, plan

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
STATES = 16
KERNELS = {
    "forward": (forward.forward_kernel, {"T": launch._TILE, "SAVE": True}),
    "forward, every token": (
        forward.forward_kernel,
        {"T": launch._TILE_EVERY, "SAVE": False, "query_bits": None, "next_query": None, "starts": None},
    ),
    "backward": (backward.backward_kernel, {"T": launch._TILE_BACKWARD}),
    "backward, no D": (backward.backward_kernel, {"T": launch._TILE_BACKWARD, "skip": None}),
    "chunk states": (chunks.chunk_states_kernel, {"T": launch._TILE}),
    "chunk gradients": (chunks.chunk_gradients_kernel, {"T": launch._TILE_GRADIENTS}),
    "carry": (chunks.carry_kernel, {"BACKWARD": False}),
}


def compile_kernel(kernel, constants, element, architecture):
    """The kernel as :mod:`launch` calls it at 7B size, with queries, softplus, D and an initial state unless said."""
    constants = {
        "SOFTPLUS": True, "N": STATES, "BN": STATES, "BD": plan.WARP, "BLOCK": plan.BLOCK, "PARTS": plan.PARTS,
        **constants,
    }  # fmt: skip
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = dict.fromkeys(("u", "delta", "du", "ddelta"), f"*{element}")
    types |= dict.fromkeys(("query_index", "query_bits", "next_query"), "*i32") | dict.fromkeys(common.INTEGERS, "i32")
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = [i for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    target = GPUTarget("cuda", architecture, 32)
    options = {"num_warps": 1} | ({"maxnreg": launch._REGISTERS} if "PARTS" in constants else {})
    return triton.compile(source, target=target, options=options).asm, constants.get("T", 1) / constants.get("PARTS", 1)


def run_tool(tool, *arguments):
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)


def read_code(sass):
    """The instructions, in the order of the code, and where in it the labels are."""
    instructions, labels = [], {}
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    return instructions, labels


def innermost_loops(instructions, labels):
    """First and last instruction of every loop that has none inside, in the order of the code."""
    loops = []
    for end, instruction in enumerate(instructions):
        target = re.search(r"\bBRA\b.*?(\.L_\w+)", instruction)
        if target and labels[target[1]] < end:
            loops.append((labels[target[1]], end))
    return sorted(a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops))


def reads_before_branches(instructions, labels):
    """Of each piece of straight code that ends with a branch: how often it reads memory."""
    reads, found = 0, []
    for i, instruction in enumerate(instructions):
        if i in labels.values():
            reads = 0
        reads += "LDG" in instruction
        if "BRA" in instruction:
            found.append(reads)
            reads = 0
    return found


def measure(name, element, architecture):
    kernel, constants = KERNELS[name]
    asm, tile = compile_kernel(kernel, constants, element, architecture)
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(asm["cubin"])
        ptx.write_text(asm["ptx"])
        code, labels = read_code(run_tool("nvdisasm", "-c", cubin).stdout)
        wide = "a" if architecture == 90 else ""
        said = run_tool("ptxas", "-v", f"-arch=sm_{architecture}{wide}", ptx, "-o", Path(folder, "again.cubin")).stderr
    loops = innermost_loops(code, labels)
    start, end = max(loops, key=lambda loop: loop[1] - loop[0])
    inner = {name: at - start for name, at in labels.items() if start < at <= end}
    return {
        "kernel": name,
        "element": element,
        "architecture": architecture,
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
        "spilled": sum(int(number) for number in re.findall(r"(\d+) bytes spill", said)),
        "instructions": [(last - first + 1) / (tile * STATES) for first, last in loops],
        "barriers": sum("BAR" in instruction for instruction in code),
        "reads before branches": reads_before_branches(code[start : end + 1], inner),
        "addresses": sorted(set(re.findall(r"\.global\.[^;\[]*\[\s*(%[a-z]+)\d+", asm["ptx"]))),
        "wide multiplications": len(re.findall(r"\b(?:mul|mad)\.(?:lo\.s64|wide\.s32)", asm["ptx"])),
    }


if __name__ == "__main__":
    for architecture in sys.argv[1:]:
        for name in KERNELS:
            for element in ("bf16", "fp32") if name in ("forward", "backward") else ("bf16",):
                print(json.dumps(measure(name, element, int(architecture))), flush=True)
