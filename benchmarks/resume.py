"""Whether a run that is killed and resumed ends with the weights of one that was left alone.

    python benchmarks/resume.py                  50 runs, each killed -9 at a random moment, then resumed
    python benchmarks/resume.py --runs 3 --seed 1

The runs are ``train.py`` on the shipped tiny base: a worker that decodes, two batches for each optimizer step, dropout
in the adapters, epochs shorter than the run, one video that cannot be read, and a checkpoint every second step. The
moment of the kill is uniform over the time that the uninterrupted run took, start and end included. A resumed run is
``resume=auto`` in the same folder, and is killed again if ``--kills`` says so. Every run is a fork of this process,
which has imported everything already; apart from that it is the command as a user gives it.

Ends with status 1 unless all final weights, and the logged losses, are identical, bit for bit.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import lightning
import peft
import transformers

import bimba.training

WARM = (lightning, peft, transformers, bimba.training)  # imported once, for all runs
SCRIPT = Path(__file__).resolve().parents[1] / "train.py"
VIDEOS = 10
KEYS = (
    "model.config.num_frames=2",
    "model.config.temporal_pooling=1",
    "model.lora.dropout=0.1",
    f"data.prepare.num_clips={{train: {VIDEOS}, test: 1}}",
    "data.prepare.workers=1",
    "data.prepare.config.num_video_frames=40",
    "data.prepare.config.distractors=[0, 0]",
    "data.global_batch_size=2",
    "data.batch_size=1",
    "data.num_workers=1",
    "data.val_samples=0",
    "callbacks.bad_videos.max_bad_share=1.0",
    "callbacks.resume.every_n_steps=2",
    "callbacks.save.every_n_steps=5",
)


def start(folder: Path, *keys: str) -> int:
    """A run in ``folder``, which goes on where an earlier one there stopped; returns the process."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = [str(SCRIPT), f"hydra.run.dir={folder}", "resume=auto", *KEYS, *keys]
        runpy.run_path(str(SCRIPT), run_name="__main__")
        status = 0
    finally:
        if status:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(process: int, folder: Path) -> None:
    """Waits for a run that must succeed."""
    _, status = os.waitpid(process, 0)
    if status:
        raise SystemExit(f"A run failed (status {status}):\n{(folder / 'log.txt').read_text()[-3000:]}")


def outcome(folder: Path) -> tuple[str, dict[str, str]]:
    """The checksum of the final weights, and the loss of each step."""
    weights = hashlib.sha256((folder / "checkpoint/model.safetensors").read_bytes()).hexdigest()
    with (folder / "metrics.csv").open(newline="") as file:
        return weights, {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--kills", type=int, default=1, help="of each run")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="bimba-resume-") as name:
        root = Path(name)
        keys = (f"data.prepare.root={root / 'needle'}", f"trainer.max_steps={options.steps}")
        finish(start(root / "first", *keys), root / "first")  # writes the data
        bad = sorted((root / "needle/train/videos").iterdir())[1]
        bad.write_bytes(bad.read_bytes()[:500])
        began_s = time.perf_counter()
        finish(start(root / "whole", *keys), root / "whole")
        duration_s = time.perf_counter() - began_s
        expected = outcome(root / "whole")
        identical = killed = missing = 0
        for number in range(options.runs):
            folder = root / f"run_{number}"
            kills = 0
            while kills < options.kills:
                process = start(folder, *keys)
                time.sleep(chance.uniform(0.0, duration_s))
                os.kill(process, signal.SIGKILL)
                _, status = os.waitpid(process, 0)
                if status != signal.SIGKILL:  # it was quicker than the one that was timed: once more, from the start
                    shutil.rmtree(folder)
                    kills = 0
                    continue
                kills += 1
            killed += kills
            finish(start(folder, *keys), folder)
            weights, losses = outcome(folder)
            # The line of the step whose checkpoint was written just before the kill may be missing, but never wrong.
            same = weights == expected[0] and losses.items() <= expected[1].items()
            missing += len(expected[1]) - len(losses)
            identical += same
            if not same:
                print(f"Run {number} ended with other weights or losses.")
            shutil.rmtree(folder)
    print(f"One run: {options.steps} steps, {duration_s:.1f} s. Killed: {killed} times.")
    print(f"{missing} of {options.runs * options.steps} lines of metrics are missing.")
    print(f"{identical} of {options.runs} identical final weights")
    sys.exit(identical != options.runs)


if __name__ == "__main__":
    main()
