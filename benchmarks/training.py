"""What training costs besides the model itself: the memory of the logits, and by two other scripts, time.

    python benchmarks/training.py                        13,440 supervised tokens, a tenth of Qwen2's vocabulary; then
                                                         training_step.py and training_data.py
    python benchmarks/training.py --vocabulary 152064    all of it: 25 GB for the peer
    python benchmarks/training.py --only logits          or step, or data

Each way runs forward and backward in a process of its own, and its peak memory counts above what it began with (weight
of the head, states). The peer is what a transformers model does: all logits, in float32, one cross entropy. The states
are 64 wide, not 3,584 as in the 7B model: the logits are no smaller for it. Freed memory goes back to the system at
once (MALLOC_MMAP_THRESHOLD_), or what malloc keeps would count. No figure is printed if the losses differ.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from bimba.training.loss import CHUNK, score

HIDDEN = 64
OTHERS = {"step": "training_step.py", "data": "training_data.py"}


def memory(line: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at its highest."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) * 1024


def measure(way: str, tokens: int, vocabulary: int) -> None:
    """In a child process: a loss and its gradients; prints the loss and the memory it took."""
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, vocabulary, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    states = torch.randn(1, tokens + 1, HIDDEN, dtype=torch.bfloat16).requires_grad_()
    labels = torch.randint(vocabulary, (1, tokens + 1))
    score(states[:, :2], labels[:, :2], head).losses.sum().backward()  # what the first call sets up does not count
    before = memory("VmRSS")
    if way == "ours":
        loss = score(states, labels, head).losses.mean()
    else:
        loss = F.cross_entropy(head(states)[0, :-1].float(), labels[0, 1:])
    loss.backward()
    print(json.dumps({"loss": loss.item(), "bytes": memory("VmHWM") - before}))


def run(way: str, tokens: int, vocabulary: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", way, "--tokens", str(tokens), "--vocabulary", str(vocabulary)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    if child.returncode:
        sys.exit(child.stderr)
    result: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return result


def compare_logits(tokens: int, vocabulary: int) -> None:
    results = {way: run(way, tokens, vocabulary) for way in ("ours", "peer")}
    if not math.isclose(results["ours"]["loss"], results["peer"]["loss"], rel_tol=1e-5):
        sys.exit(f"The two ways give different losses ({results}): no figures.")
    print(f"{tokens:,} tokens x {vocabulary:,} words: {tokens * vocabulary * 4 / 1e9:.2f} GB of float32 logits")
    for way, what in (("ours", f"{CHUNK} tokens at a time"), ("peer", "all at once")):
        print(f"{way:<5} peak {results[way]['bytes'] / 1e9:5.2f} GB  {what}")
    print(f"ratio 1/{results['peer']['bytes'] / results['ours']['bytes']:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=13440, help="supervised tokens (default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=15206, help="words (default: %(default)s)")
    parser.add_argument("--only", choices=["logits", *OTHERS], help="one of the three")
    parser.add_argument("--measure", choices=["ours", "peer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tokens, vocabulary = arguments.tokens, arguments.vocabulary
    if arguments.measure:
        measure(arguments.measure, tokens, vocabulary)
        return
    if arguments.only in (None, "logits"):
        compare_logits(tokens, vocabulary)
    for name, script in OTHERS.items():
        if arguments.only in (None, name):
            print(f"\n{script}", flush=True)
            if failed := subprocess.run([sys.executable, str(Path(__file__).with_name(script))]).returncode:
                sys.exit(failed)


if __name__ == "__main__":
    main()
