"""``python train.py`` that is killed, asked to end, or told to go on with other processes."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = 8
COMMON = (
    "optimizer=adamw",
    "model.config.num_frames=2",
    "model.config.temporal_pooling=1",
    f"trainer.max_steps={STEPS}",
    "data.prepare.num_clips={train: 8, test: 1}",
    "data.prepare.workers=1",
    "data.global_batch_size=4",
    "data.batch_size=1",
    "data.num_workers=1",
    "data.val_samples=0",
    "callbacks.resume.every_n_steps=3",
)
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")


def start(run_dir, *arguments, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "BIMBA_ROOT"}
    command = [sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={run_dir}", *arguments]
    return subprocess.Popen(
        command, cwd=run_dir.parent, env={**environment, **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finish(process):
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stdout


def losses(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}


def wait_for_step(run_dir, step, process):
    """Until so many steps are logged, or the run is over."""
    while process.poll() is None:
        path = run_dir / "metrics.csv"
        if path.is_file() and len(path.read_text().splitlines()) > step:
            return
        time.sleep(0.01)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("resumed")


@pytest.fixture(scope="module")
def needle(root):
    return f"data.prepare.root={root / 'needle'}"


@pytest.fixture(scope="module")
def straight(root, needle):
    finish(start(root / "straight", *COMMON, needle))
    return root / "straight"


def test_sigterm_to_two_processes_and_their_workers_then_one_goes_on(root, needle, straight):
    run_dir = root / "two_then_one"
    process = start(run_dir, *COMMON, needle, *TWO)
    wait_for_step(run_dir, 1, process)
    os.killpg(process.pid, signal.SIGTERM)  # as Slurm does
    stdout, stderr = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, stderr
    step = int(re.search(r"SIGTERM ended the run after step (\d+)\. To go on: resume=", stdout)[1])
    assert step < STEPS
    assert sorted(losses(run_dir)) == list(range(step))
    assert (run_dir / f"resume/step_{step:08d}.ckpt").is_file()
    stdout = finish(start(run_dir, *COMMON, needle, "resume=auto", "data.num_workers=0"))
    assert f"going on from {run_dir}/resume/step_{step:08d}.ckpt" in stdout
    assert losses(run_dir) == pytest.approx(losses(straight), rel=1e-5)


def test_one_process_is_interrupted_and_two_go_on(root, needle, straight):
    run_dir = root / "one_then_two"
    process = start(run_dir, *COMMON, needle)
    wait_for_step(run_dir, 1, process)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    finish(start(run_dir, *COMMON, needle, *TWO, "resume=auto"))
    assert losses(run_dir) == pytest.approx(losses(straight), rel=1e-5)


def test_another_learning_rate_is_refused(root, needle, straight):
    shutil.copytree(straight, root / "changed")
    process = start(root / "changed", *COMMON, needle, "resume=auto", "optimizer.lr=0.5")
    _, stderr = process.communicate()
    assert process.returncode == 1
    assert "-> 0.5" in stderr
    assert "Traceback" not in stderr


def test_killed_at_random_moments_it_ends_the_same():
    command = [sys.executable, str(ROOT / "benchmarks/resume.py"), "--runs=2", "--kills=2", "--steps=8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "2 of 2 identical final weights"
