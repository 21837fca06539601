"""A run that stops within an epoch goes on with the samples it had not seen, not with the epoch's first."""

from __future__ import annotations

import contextlib
from pathlib import Path

import lightning as L
import pytest
import torch

from bimba.data.datamodule import VideoQADataModule
from bimba.data.needle_files import generate
from bimba.training.keep_state import KeepState
from tests.data.files import TINY_CLIP
from tests.training.fakes import NUM_FRAMES, tiny_module, tiny_trainer

BATCHES_PER_EPOCH = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("needle")
    generate(folder, "train", 2 * BATCHES_PER_EPOCH, TINY_CLIP, workers=1)
    return folder


class PowerCut(Exception):
    """The run ends without notice."""


class Crash(L.Callback):
    def __init__(self, after: int | None):
        self.after = after

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.after:
            raise PowerCut


def run(root: Path, run_dir: Path, crash_after: int | None = None, resume: Path | None = None, num_workers: int = 0):
    save = KeepState(run_dir, every_n_steps=3)
    torch.manual_seed(0)
    module = tiny_module(lr=1e-2)
    data = VideoQADataModule(
        annotations=str(root / "train" / "annotations.json"),
        video_folder=str(root / "train"),
        processor=module.processor,
        num_frames=NUM_FRAMES,
        max_length=600,
        global_batch_size=2,
        batch_size=2,
        num_workers=num_workers,
        seed=5,
    )
    trainer = tiny_trainer(run_dir, 6, [save, Crash(crash_after)], resume)
    with contextlib.suppress(PowerCut):
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module, trainer


@pytest.mark.parametrize("num_workers", [0, 1])
def test_three_and_three_steps_over_epochs_of_four_are_six(root, tmp_path, num_workers):
    straight, _ = run(root, tmp_path / "straight")
    run(root, tmp_path / "broken", crash_after=4)  # the last checkpoint is that of step 3
    resumed, trainer = run(
        root, tmp_path / "broken", resume=tmp_path / "broken/resume/step_00000003.ckpt", num_workers=num_workers
    )
    assert trainer.global_step == 6
    for (name, expected), (_, weight) in zip(straight.named_parameters(), resumed.named_parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0, msg=name)
