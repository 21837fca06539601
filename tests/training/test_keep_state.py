import logging
import os
import resource
import signal

import lightning as L
import pytest
import torch

from bimba.training.callbacks import SaveCheckpoint
from bimba.training.checkpointing import newest_first, newest_whole
from bimba.training.keep_state import KeepState
from bimba.training.signals import Stopped
from bimba.types import BimbaError
from tests.training.fakes import FakeData, read_metrics, tiny_module, tiny_trainer


class SignalIn(L.Callback):
    """Sends a signal to this process before a batch."""

    def __init__(self, batch, signum):
        self.batch, self.signum = batch, signum

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            os.kill(os.getpid(), self.signum)


def run(run_dir, max_steps, more=(), resume=None, **kwargs):
    torch.manual_seed(0)
    module = tiny_module(lr=1e-2)
    state = KeepState(run_dir, **{"every_n_steps": 100, **kwargs})
    trainer = tiny_trainer(run_dir, max_steps, [state, *more], resume, accumulate_grad_batches=2)
    trainer.fit(module, FakeData(module.processor, length=8), ckpt_path=resume, weights_only=True)
    return module, state


def steps(run_dir):
    return [int(path.stem.removeprefix("step_")) for path in newest_first(run_dir / "resume")]


def test_the_last_files_are_kept(tmp_path):
    run(tmp_path, 5, every_n_steps=1)
    assert steps(tmp_path) == [5, 4]
    run(tmp_path, 5, every_n_steps=2, keep=3)
    assert steps(tmp_path) == [5, 4, 2]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_the_middle_of_a_step_ends_the_run_after_it(tmp_path, signum):
    """Batches 3 and 4 are the second step; the epoch has two."""
    before = signal.getsignal(signal.SIGINT)
    straight, _ = run(tmp_path / "straight", 4)
    with pytest.raises(Stopped, match=rf"{signal.Signals(signum).name} ended the run after step 2. To go on: resume="):
        run(tmp_path / "broken", 4, [SignalIn(3, signum)])
    assert steps(tmp_path / "broken") == [2]
    resumed, _ = run(tmp_path / "broken", 4, resume=newest_whole(tmp_path / "broken/resume"))
    assert read_metrics(tmp_path / "broken")["train/loss"] == read_metrics(tmp_path / "straight")["train/loss"]
    for (name, weight), (_, other) in zip(straight.named_parameters(), resumed.named_parameters(), strict=True):
        torch.testing.assert_close(other, weight, rtol=0, atol=0, msg=name)
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("requeued", [False, True])
def test_the_model_is_saved_too_unless_the_job_goes_on(tmp_path, monkeypatch, requeued):
    monkeypatch.setattr("bimba.training.keep_state.requeue", lambda signum: requeued)
    with pytest.raises(Stopped) as stopped:
        run(tmp_path, 4, [SaveCheckpoint(tmp_path), SignalIn(1, signal.SIGTERM)])
    assert stopped.value.requeued == requeued
    assert (tmp_path / "checkpoint").is_dir() == (not requeued)


def test_a_job_is_not_queued_again_unless_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr("bimba.training.keep_state.requeue", lambda signum: pytest.fail("asked Slurm"))
    with pytest.raises(Stopped):
        run(tmp_path, 4, [SignalIn(1, signal.SIGTERM)], requeue=False)


class FullDisk(L.Callback):
    """No file may grow past 100 bytes during one step."""

    def __init__(self, step):
        self.step = step
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_end(self, trainer, *_):  # before KeepState's
        room = 100 if trainer.global_step == self.step else self.limits[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, self.limits[1]))


def test_training_goes_on_when_a_file_cannot_be_written(tmp_path, caplog):
    straight, _ = run(tmp_path / "straight", 4)
    disk = FullDisk(2)
    try:
        with caplog.at_level(logging.ERROR):
            module, state = run(tmp_path / "full", 4, [disk], every_n_steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, disk.limits)
    assert "step_00000002.ckpt could not be written: File too large. Training goes on" in caplog.text
    assert state.failures == 1
    assert steps(tmp_path / "full") == [4, 3]
    for (name, weight), (_, other) in zip(straight.named_parameters(), module.named_parameters(), strict=True):
        torch.testing.assert_close(other, weight, rtol=0, atol=0, msg=name)


def test_files_of_a_run_that_is_not_resumed_are_moved_aside(tmp_path, caplog):
    run(tmp_path, 4)
    run(tmp_path, 2)
    assert steps(tmp_path) == [2]
    assert (tmp_path / "resume.1/step_00000004.ckpt").is_file()
    assert "is of an earlier run" in caplog.text
    run(tmp_path, 4, resume=tmp_path / "resume/step_00000002.ckpt")
    assert steps(tmp_path) == [4, 2]


def test_a_finished_run_that_is_resumed_has_nothing_to_do(tmp_path):
    first, _ = run(tmp_path, 2)
    again, _ = run(tmp_path, 2, resume=tmp_path / "resume/step_00000002.ckpt")
    for (name, weight), (_, other) in zip(first.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(other, weight, rtol=0, atol=0, msg=name)
    assert steps(tmp_path) == [2]


@pytest.mark.parametrize("wrong", [{"every_n_steps": 0}, {"keep": 1}])
def test_wrong_settings_are_explained(tmp_path, wrong):
    with pytest.raises(BimbaError, match=f"callbacks.resume.{next(iter(wrong))}"):
        KeepState(tmp_path, **wrong)
