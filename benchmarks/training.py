"""What training costs besides the model itself: the memory of the logits, and by two other scripts, time.

    python benchmarks/training.py                        then training_step.py and training_data.py
    python benchmarks/training.py --only logits          or step, or data
    python benchmarks/training.py --gpu                  a step at the 7B model's size: training_gpu.py

The peer is what a transformers model does: all logits, in float32, one cross entropy. Both run on a tenth of Qwen2's
vocabulary, and ours on all of it. There the peer would need 8.2 GB for the logits and as much again for their
gradient; that is counted, not run, and leaves out its softmax and whatever is in bfloat16.

Each way runs forward and backward in a process of its own, and its peak memory counts above what it began with (weight
of the head, states). The states are 64 wide, not 3,584 as in the 7B model: the logits are no smaller for it. Freed
memory goes back to the system at once (MALLOC_MMAP_THRESHOLD_), or what malloc keeps would count. No figure is printed
if the losses differ; the whole vocabulary's is compared with one that was added up by words instead of tokens.
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
SLICE = 4096  # words at a time, to check a loss
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
    peak = memory("VmHWM") - before
    print(json.dumps({"loss": loss.item(), "bytes": peak, "by_words": loss_by_words(states, labels, head.weight)}))


@torch.no_grad()
def loss_by_words(states: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> float:
    """The same loss, a few words of the vocabulary at a time for all tokens; nothing of it is shared with ours."""
    of_tokens = states[0, :-1]  # (N, C)
    totals = torch.full((len(of_tokens),), -math.inf)
    for words in weight.split(SLICE):
        totals = torch.logaddexp(totals, F.linear(of_tokens, words).float().logsumexp(dim=1))
    right = (of_tokens.float() * weight[labels[0, 1:]].float()).sum(dim=1)
    return (totals - right.bfloat16().float()).double().mean().item()


def run(way: str, tokens: int, vocabulary: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", way, "--tokens", str(tokens), "--vocabulary", str(vocabulary)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    if child.returncode:
        sys.exit(child.stderr)
    result: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return result


def compare_logits(tokens: int, vocabulary: int) -> None:
    """Prints the ratio measured on a tenth of the vocabulary, and the bound of it that is counted for all of it."""
    tenth = vocabulary // 10
    results = {way: run(way, tokens, tenth) for way in ("ours", "peer")}
    results["whole"] = run("ours", tokens, vocabulary)
    same = (("ours", results["peer"]["loss"]), ("ours", results["ours"]["by_words"]))
    for way, expected in (*same, ("whole", results["whole"]["by_words"])):
        if not math.isclose(results[way]["loss"], expected, rel_tol=1e-5):
            sys.exit(f"The ways give different losses ({results}): no figures.")
    logits = tokens * vocabulary * 4
    ours, peer, whole = (results[way]["bytes"] for way in ("ours", "peer", "whole"))
    print(f"{tokens:,} tokens x {tenth:,} words: {tokens * tenth * 4 / 1e9:.2f} GB of float32 logits")
    print(f"ours  peak {ours / 1e9:5.2f} GB  {CHUNK} tokens at a time")
    print(f"peer  peak {peer / 1e9:5.2f} GB  all at once")
    print(f"ratio 1/{peer / ours:.1f}")
    print(f"{tokens:,} tokens x {vocabulary:,} words: {logits / 1e9:.2f} GB of float32 logits")
    print(f"ours  peak {whole / 1e9:5.2f} GB  {CHUNK} tokens at a time")
    print(f"peer  above {2 * logits / 1e9:5.2f} GB  logits and their gradient, counted, not run")
    print(f"ratio below 1/{2 * logits / whole:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=13440, help="supervised tokens (default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=152064, help="words (default: %(default)s)")
    parser.add_argument("--only", choices=["logits", *OTHERS], help="one of the three")
    parser.add_argument("--gpu", action="store_true", help="training_gpu.py instead")
    parser.add_argument("--tiny", action="store_true", help="with --gpu: tiny sizes, on the CPU")
    parser.add_argument("--measure", choices=["ours", "peer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tokens, vocabulary = arguments.tokens, arguments.vocabulary
    if arguments.measure:
        measure(arguments.measure, tokens, vocabulary)
        return
    if arguments.tiny and not arguments.gpu:
        parser.error("--tiny is for --gpu")
    if arguments.gpu:
        import training_gpu

        sys.exit(training_gpu.main(arguments.tiny))
    if arguments.only in (None, "logits"):
        compare_logits(tokens, vocabulary)
    for name, script in OTHERS.items():
        if arguments.only in (None, name):
            print(f"\n{script}", flush=True)
            if failed := subprocess.run([sys.executable, str(Path(__file__).with_name(script))]).returncode:
                sys.exit(failed)


if __name__ == "__main__":
    main()
