import pytest
import torch

from bimba.training.norms import UpdateNorms
from bimba.training.trainable import part_of
from bimba.types import BimbaError
from tests.training.fakes import FakeData, read_metrics, tiny_module, tiny_trainer


def trained(module):
    return {n: p.detach().clone() for n, p in module.model.named_parameters() if p.requires_grad}


def of_part(weights, part):
    return torch.cat([weight.flatten() for name, weight in weights.items() if part_of(name) == part])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_norms_are_those_of_the_weights_before_and_after_the_step(tmp_path, accumulate):
    module = tiny_module(lr=1e-2)
    before = trained(module)
    trainer = tiny_trainer(tmp_path, 1, [UpdateNorms(every_n_steps=1)], accumulate_grad_batches=accumulate)
    trainer.fit(module, FakeData(module.processor))
    after, metrics = trained(module), read_metrics(tmp_path)
    for part in ("projector", "lora"):
        update = (of_part(after, part) - of_part(before, part)).norm().item()
        weight = of_part(after, part).norm().item()
        assert update > 0
        assert metrics[f"update_norm/{part}"] == pytest.approx([update], rel=1e-4)
        assert metrics[f"weight_norm/{part}"] == pytest.approx([weight], rel=1e-4)
        assert metrics[f"update_ratio/{part}"] == pytest.approx([update / weight], rel=1e-4)


def test_every_so_many_steps_and_after_the_last(tmp_path):
    module = tiny_module()
    callback = UpdateNorms(every_n_steps=2)
    tiny_trainer(tmp_path, 5, [callback]).fit(module, FakeData(module.processor))
    assert len(read_metrics(tmp_path)["update_norm/lora"]) == 3  # after 2, 4 and 5
    assert not callback._before  # the copy is not kept


def test_after_the_last_step_of_the_last_epoch(tmp_path):
    module = tiny_module()
    trainer = tiny_trainer(tmp_path, -1, [UpdateNorms(every_n_steps=3)], max_epochs=1)
    trainer.fit(module, FakeData(module.processor))
    assert trainer.global_step == 4
    assert len(read_metrics(tmp_path)["update_norm/lora"]) == 2  # after 3 and 4


def test_zero_steps_is_an_error():
    with pytest.raises(BimbaError, match="every_n_steps is 0"):
        UpdateNorms(every_n_steps=0)
