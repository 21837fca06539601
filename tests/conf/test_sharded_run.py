"""``python train.py trainer=fsdp``: two processes that share every weight train as one process does."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[2] / "train.py"
STEPS, HALF = 8, 4
# AdamW: Muon rounds to bfloat16, where the last bit of a sum decides about the third digit of an update.
COMMON = (
    "optimizer=adamw",
    "model.config.num_frames=4",
    "model.config.temporal_pooling=2",
    f"trainer.max_steps={STEPS}",
    "data.prepare.num_clips={train: 16, test: 1}",
    "data.prepare.workers=1",
    "data.global_batch_size=8",
    "data.batch_size=2",  # so one process accumulates four batches, each of two processes two
    "data.num_workers=0",
    "data.val_samples=4",
    f"callbacks.resume.every_n_steps={HALF}",
)
SHARDED = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2")


def losses(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}


def validation(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/loss")]
    return [float(row[f"val/{name}"]) for row in rows for name in ("loss", "accuracy", "exact_answers")]


def half(run_dir):
    return run_dir / f"resume/step_{HALF:08d}.ckpt"


def run(run_dir, *arguments):
    """In processes of its own, which Lightning starts from the command that it was given."""
    done = attempt(run_dir, *arguments)
    assert done.returncode == 0, done.stderr
    return done


def attempt(run_dir, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "BIMBA_ROOT"}
    command = [sys.executable, str(SCRIPT), f"hydra.run.dir={run_dir}", *arguments]
    return subprocess.run(command, cwd=run_dir.parent, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def needle(root):
    return f"data.prepare.root={root / 'needle'}"


@pytest.fixture(scope="module")
def one(root, needle):
    run(root / "one", *COMMON, needle, f"trainer.val_check_interval={4 * STEPS}")  # in batches of a process
    return root / "one"


@pytest.fixture(scope="module")
def two(root, needle, one):
    run(root / "two", *COMMON, needle, *SHARDED, f"trainer.val_check_interval={2 * STEPS}")
    return root / "two"


def test_two_processes_have_the_losses_of_one(one, two):
    assert len(losses(one)) == STEPS
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


def test_two_processes_validate_as_one(one, two):
    assert len(validation(one)) == 3
    assert validation(two) == pytest.approx(validation(one), rel=1e-4)


def test_the_checkpoint_is_whole_and_the_same(one, two):
    from bimba.checkpoint import load_pretrained

    assert (two / "checkpoint/config.json").read_text() == (one / "checkpoint/config.json").read_text()
    assert {path.name for path in (two / "checkpoint").iterdir()} == {p.name for p in (one / "checkpoint").iterdir()}
    trained, expected = (load_file(run_dir / "checkpoint/model.safetensors") for run_dir in (two, one))
    assert trained.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=1e-4, msg=name)
    load_pretrained(two / "checkpoint")


def test_the_file_to_resume_from_holds_what_is_trained_and_names_its_base(one, two):
    sharded, plain = (torch.load(half(run_dir), weights_only=True) for run_dir in (two, one))
    assert sharded["base"] == plain["base"] == "bimba-tiny"
    assert sharded["state_dict"].keys() == plain["state_dict"].keys()
    assert not any(name.startswith("model.vision_tower") for name in sharded["state_dict"])


@pytest.mark.parametrize("more", [(), SHARDED], ids=["two_then_one", "one_then_two"])
def test_the_number_of_processes_may_change_when_a_run_resumes(more, root, needle, one, two):
    run_dir = root / f"resumed_{len(more)}"
    run(run_dir, *COMMON, needle, *more, f"resume='{half(one if more else two)}'")
    expected = {step: loss for step, loss in losses(one).items() if step >= HALF}
    assert losses(run_dir) == pytest.approx(expected, rel=1e-5)


def test_when_one_process_fails_all_end_with_its_message(root, needle, one):
    clips = sorted((root / "needle/train/videos").glob("*.mp4"))
    whole = clips[0].read_bytes()
    clips[0].write_bytes(whole[:100])
    try:  # whichever process meets this clip, in the first epoch of two steps
        few = ("trainer.max_steps=2", "data.val_samples=0", "callbacks.bad_videos.max_bad_share=0")
        done = attempt(root / "failed", *COMMON, needle, *SHARDED, *few)
    finally:
        clips[0].write_bytes(whole)
    assert done.returncode == 1
    assert done.stderr.count("error: 1 of the first") == 1
    assert "Traceback" not in done.stderr
