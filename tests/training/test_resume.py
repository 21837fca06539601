import contextlib
from pathlib import Path

import lightning as L
import pytest
import torch

from bimba.training.callbacks import BadVideoGuard
from bimba.training.keep_state import KeepState
from bimba.types import BimbaError
from tests.training.fakes import LORA, FakeData, read_metrics, tiny_module, tiny_trainer


def run(run_dir: Path, max_steps: int, resume: Path | None = None, stop_after: int | None = None, **kwargs):
    """A run of ``max_steps`` steps over epochs of two; ``stop_after`` ends it early as a crash would."""

    class PowerCut(Exception):
        """The run ends without notice."""

    class Crash(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == stop_after:
                raise PowerCut

    save = KeepState(run_dir, every_n_steps=2)
    torch.manual_seed(0)
    module = tiny_module(**{"lr": 1e-2, **kwargs})
    trainer = tiny_trainer(run_dir, max_steps, [save, BadVideoGuard(run_dir), Crash()], resume)
    with contextlib.suppress(PowerCut):
        trainer.fit(module, FakeData(module.processor, length=4), ckpt_path=resume, weights_only=True)
    return module


@pytest.mark.parametrize("matrix_lr", [None, 5e-3], ids=["adamw", "muon"])
def test_two_and_two_steps_are_four(tmp_path, matrix_lr):
    straight = run(tmp_path / "straight", 4, matrix_lr=matrix_lr)
    run(tmp_path / "broken", 4, stop_after=3, matrix_lr=matrix_lr)
    resumed = run(tmp_path / "broken", 4, resume=tmp_path / "broken/resume/step_00000002.ckpt", matrix_lr=matrix_lr)
    for (name, expected), (_, weight) in zip(straight.named_parameters(), resumed.named_parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0, msg=name)


def test_metrics_of_a_resumed_run_go_on_in_the_same_file(tmp_path):
    run(tmp_path, 4, stop_after=4)  # with a checkpoint after two steps
    before = read_metrics(tmp_path)
    assert before["step"] == [0, 1, 1, 2]  # the second 1 is the validation at the end of the epoch
    run(tmp_path, 4, resume=tmp_path / "resume/step_00000002.ckpt")
    after = read_metrics(tmp_path)
    assert after["step"] == [0, 1, 1, 2, 3, 3]
    assert after["train/loss"][:3] == before["train/loss"]


def test_the_resume_file_holds_trained_weights_only(tmp_path):
    module = run(tmp_path, 2)
    state = torch.load(tmp_path / "resume/step_00000002.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {name for name, p in module.named_parameters() if p.requires_grad}


def test_resuming_another_setup_is_an_error_that_names_the_difference(tmp_path):
    run(tmp_path, 2)
    with pytest.raises(BimbaError, match=r"lacks 8 trained weights \(model\.language_model.*k_proj.*config\.yaml"):
        run(
            tmp_path,
            4,
            resume=tmp_path / "resume/step_00000002.ckpt",
            model={"lora": {**LORA, "target_modules": ["k_proj", "o_proj"]}},
        )


def test_bad_videos_go_on_being_counted(tmp_path):
    guard = BadVideoGuard(tmp_path)
    guard.load_state_dict({"seen": 200, "bad": 2})
    assert guard.state_dict() == {"seen": 200, "bad": 2}
