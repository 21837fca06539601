"""The running mean of the trained weights."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from bimba.training.callbacks import SaveCheckpoint
from bimba.training.ema import Ema
from bimba.types import BimbaError
from tests.training.fakes import FakeData, tiny_module, tiny_trainer

NAME = "projector.0.weight"


class Means(Ema):
    """Computes the means again from what it sees of one weight."""

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.expected = pl_module.model.get_parameter(NAME).detach().clone()

    def on_train_batch_end(self, trainer, pl_module, *rest):
        super().on_train_batch_end(trainer, pl_module, *rest)
        decay = min(self.decay, (1 + trainer.global_step) / (10 + trainer.global_step))
        self.expected = decay * self.expected + (1 - decay) * pl_module.model.get_parameter(NAME).detach()


def test_the_checkpoint_has_the_means_and_training_goes_on_from_the_weights(tmp_path):
    module, ema = tiny_module(lr=1e-2), Means(decay=0.3)
    tiny_trainer(tmp_path, 5, [ema, SaveCheckpoint(tmp_path)]).fit(module, FakeData(module.processor))
    without = tiny_module(lr=1e-2)
    tiny_trainer(tmp_path / "without", 5, []).fit(without, FakeData(without.processor))
    weight = module.model.get_parameter(NAME).detach()
    assert torch.equal(weight, without.model.get_parameter(NAME))
    saved = load_file(tmp_path / "checkpoint/model.safetensors")[NAME]
    torch.testing.assert_close(saved, ema.expected)
    assert not torch.allclose(saved, weight)


def test_it_goes_on_where_it_was(tmp_path):
    def run(name, steps, resume=None):
        module, ema = tiny_module(lr=1e-2, schedule="constant"), Ema(decay=0.9)
        save = ModelCheckpoint(tmp_path / name, save_last=True, save_top_k=0, every_n_train_steps=2)
        tiny_trainer(tmp_path / name, steps, [ema, save, SaveCheckpoint(tmp_path / name)], resume).fit(
            module, FakeData(module.processor, length=4), ckpt_path=resume, weights_only=True
        )
        return load_file(tmp_path / name / "checkpoint/model.safetensors")[NAME]

    straight = run("straight", 4)
    run("broken", 2)
    resumed = run("broken", 4, tmp_path / "broken/last.ckpt")
    torch.testing.assert_close(resumed, straight, rtol=0, atol=0)


class Interrupted(L.Callback):
    """Ends the run in the middle of a validation."""

    def on_validation_batch_end(self, trainer, pl_module, *rest):
        raise BimbaError("stop")


@pytest.mark.parametrize("ema_is_last", [True, False])
def test_a_run_that_ends_in_a_validation_keeps_the_means_and_its_weights(tmp_path, ema_is_last):
    module, ema = tiny_module(lr=1e-2), Means(decay=0.3)
    callbacks = [SaveCheckpoint(tmp_path), Interrupted()]
    trainer = tiny_trainer(tmp_path, 6, [*callbacks, ema] if ema_is_last else [ema, *callbacks])
    with pytest.raises(BimbaError, match="stop"):
        trainer.fit(module, FakeData(module.processor))  # validates after an epoch of 4
    assert trainer.global_step == 4
    torch.testing.assert_close(load_file(tmp_path / "checkpoint/model.safetensors")[NAME], ema.expected)
    without = tiny_module(lr=1e-2)
    tiny_trainer(tmp_path / "without", 6, [StopAfter(4)]).fit(without, FakeData(without.processor))
    assert torch.equal(module.model.get_parameter(NAME), without.model.get_parameter(NAME))


class StopAfter(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *rest):
        trainer.should_stop = trainer.global_step == self.step


def test_a_checkpoint_on_the_way_has_the_step_that_has_just_been_done(tmp_path):
    class Kept(SaveCheckpoint):
        def _save(self, trainer, pl_module):
            super()._save(trainer, pl_module)
            saved.append(load_file(self.folder / "model.safetensors")[NAME])

    saved = []
    module, ema = tiny_module(lr=1e-2), Means(decay=0.3)
    tiny_trainer(tmp_path, 2, [Kept(tmp_path, every_n_steps=1), ema]).fit(module, FakeData(module.processor))
    assert len(saved) == 2  # none at the end: that of step 2 is there
    torch.testing.assert_close(saved[-1], ema.expected)


def test_a_run_of_no_steps_leaves_the_model_it_began_with(tmp_path):
    module = tiny_module()
    tiny_trainer(tmp_path, 0, [SaveCheckpoint(tmp_path), Ema()]).fit(module, FakeData(module.processor))
    saved = load_file(tmp_path / "checkpoint/model.safetensors")[NAME]
    assert torch.equal(saved, module.model.get_parameter(NAME))


def test_a_wrong_decay_is_explained():
    with pytest.raises(BimbaError, match="callbacks.ema.decay is 1.0"):
        Ema(decay=1.0)
