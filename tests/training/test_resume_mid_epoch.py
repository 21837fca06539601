"""A run that stops within an epoch goes on with the samples it had not seen, and with the same dropout masks."""

from __future__ import annotations

import contextlib
from pathlib import Path

import lightning as L
import pytest
import torch

from bimba.data.datamodule import VideoQADataModule
from bimba.data.needle_files import generate
from bimba.training.callbacks import BadVideoGuard
from bimba.training.keep_state import KeepState
from tests.data.files import TINY_CLIP
from tests.training.fakes import LORA, NUM_FRAMES, read_metrics, tiny_module, tiny_trainer

STEPS, STEPS_PER_EPOCH, SAMPLES_PER_STEP = 10, 4, 2


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("needle")
    generate(folder, "train", SAMPLES_PER_STEP * STEPS_PER_EPOCH, TINY_CLIP, workers=1)
    bad = sorted((folder / "train/videos").iterdir())[3]
    bad.write_bytes(bad.read_bytes()[:500])
    return folder


class PowerCut(Exception):
    """The run ends without notice."""


class Crash(L.Callback):
    """In the middle of the step after ``after`` steps."""

    def __init__(self, after: int | None):
        self.after = after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.after and (batch_idx + 1) % SAMPLES_PER_STEP:
            raise PowerCut


def run(root: Path, run_dir: Path, crash_after: int | None = None, resume: Path | None = None, num_workers: int = 0):
    torch.manual_seed(0)
    module = tiny_module(lr=1e-2, model={"lora": {**LORA, "dropout": 0.3}})
    data = VideoQADataModule(
        annotations=str(root / "train" / "annotations.json"),
        video_folder=str(root / "train"),
        processor=module.processor,
        num_frames=NUM_FRAMES,
        max_length=600,
        global_batch_size=SAMPLES_PER_STEP,
        batch_size=1,
        num_workers=num_workers,
        seed=5,
    )
    callbacks = [KeepState(run_dir, every_n_steps=2), BadVideoGuard(run_dir, max_bad_share=1.0), Crash(crash_after)]
    trainer = tiny_trainer(run_dir, STEPS, callbacks, resume, accumulate_grad_batches=SAMPLES_PER_STEP)
    with contextlib.suppress(PowerCut):
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module, trainer


@pytest.fixture(scope="module")
def straight(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    module, _ = run(root, folder, num_workers=1)
    bad_videos = (folder / "bad_videos.jsonl").read_text()
    assert len(bad_videos.splitlines()) >= STEPS // STEPS_PER_EPOCH
    return module, read_metrics(folder)["train/loss"], bad_videos


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("crash_after", "resumed_at"),
    [(3, 2), (5, 4), (7, 6)],
    ids=["in_the_first_epoch", "between_two", "in_the_second"],
)
def test_a_crashed_and_resumed_run_is_an_uninterrupted_one(
    root, tmp_path, straight, num_workers, crash_after, resumed_at
):
    run(root, tmp_path, crash_after=crash_after, num_workers=1)
    resumed, trainer = run(
        root, tmp_path, resume=tmp_path / f"resume/step_{resumed_at:08d}.ckpt", num_workers=num_workers
    )
    assert trainer.global_step == STEPS
    expected, losses, bad_videos = straight
    assert read_metrics(tmp_path)["train/loss"] == losses
    assert (tmp_path / "bad_videos.jsonl").read_text() == bad_videos
    for (name, weight), (_, other) in zip(expected.named_parameters(), resumed.named_parameters(), strict=True):
        torch.testing.assert_close(other, weight, rtol=0, atol=0, msg=name)
