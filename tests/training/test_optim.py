import math

import pytest
import torch

from bimba.training.optim import OptimizerSettings, build_optimizer, is_decayed, parameter_groups, rate_factor
from bimba.training.trainable import set_trainable
from bimba.types import BimbaError
from tests.training.fakes import LORA, tiny_model


def model_with_compressor(tuning="lora"):
    model, _ = tiny_model(compressor={"name": "mamba"})
    set_trainable(model, tuning, LORA)
    return model


def test_every_trained_parameter_is_in_one_group():
    model = model_with_compressor()
    groups = parameter_groups(model, OptimizerSettings(lr=1e-3))
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    assert [group["name"] for group in groups] == ["base", "base_no_decay"]


def test_biases_norms_and_scan_constants_do_not_decay():
    model = model_with_compressor("full")
    groups = parameter_groups(model, OptimizerSettings(lr=1e-3, weight_decay=0.1))
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        kept = last in ("bias", "A_log", "A_b_log", "D", "D_b", "image_newline") or "norm" in name
        assert (id(parameter) in decayed) != kept, name


def test_compressor_and_projector_may_have_their_own_rate():
    model = model_with_compressor()
    groups = parameter_groups(model, OptimizerSettings(lr=1e-4, compressor_lr=1e-3, projector_lr=1e-5))
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = 1e-3 if name.startswith("compressor") else 1e-5 if name.startswith("projector") else 1e-4
            assert rate_of[id(parameter)] == expected, name


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_vision_tower_may_have_its_own_rate_be_it_by_adapters(tuning):
    model, _ = tiny_model()
    set_trainable(model, tuning, {**LORA, "vision_tower": True})
    groups = parameter_groups(model, OptimizerSettings(lr=1e-4, vision_tower_lr=1e-3))
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rate_of[id(parameter)] == (1e-3 if name.startswith("vision_tower") else 1e-4), name
    assert "vision_tower" in {group["name"] for group in groups}


def test_a_rate_for_a_part_that_is_not_there_is_an_error():
    model, _ = tiny_model()
    set_trainable(model, "lora", LORA)
    with pytest.raises(BimbaError, match="compressor_lr"):
        parameter_groups(model, OptimizerSettings(lr=1e-4, compressor_lr=1e-3))
    with pytest.raises(BimbaError, match="vision_tower_lr is set"):
        parameter_groups(model, OptimizerSettings(lr=1e-4, vision_tower_lr=1e-3))


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_each_part_may_have_its_own_rate_and_decay(tuning):
    model = model_with_compressor(tuning)
    own = "language_model" if tuning == "full" else "lora"
    settings = OptimizerSettings(
        lr=1e-4, weight_decay=0.1, compressor_weight_decay=0.2, **{f"{own}_lr": 1e-2, f"{own}_weight_decay": 0.3}
    )
    group_of = {id(p): group for group in parameter_groups(model, settings) for p in group["params"]}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = name.split(".")[0]
        rate = 1e-2 if part == "language_model" else 1e-4
        decay = {"language_model": 0.3, "compressor": 0.2}.get(part, 0.1) if is_decayed(name, parameter) else 0.0
        assert (group_of[id(parameter)]["lr"], group_of[id(parameter)]["weight_decay"]) == (rate, decay), name


def test_a_decay_for_a_part_that_is_not_there_is_an_error():
    with pytest.raises(BimbaError, match="optimizer.language_model_weight_decay is set"):
        parameter_groups(model_with_compressor(), OptimizerSettings(lr=1e-4, language_model_weight_decay=0.1))


def test_nothing_to_train_is_an_error():
    model, _ = tiny_model()
    with pytest.raises(BimbaError, match="no trained parameter"):
        parameter_groups(model.requires_grad_(False), OptimizerSettings(lr=1e-4))


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    model = model_with_compressor("full")
    settings = OptimizerSettings(lr=1e-3, matrix_lr=5e-3, warmup_ratio=0.0)
    groups = {group["name"]: group for group in parameter_groups(model, settings)}
    matrices = {id(p) for p in groups["matrices"]["params"]}
    for name, parameter in model.named_parameters():
        hidden = ("proj" in name and parameter.ndim == 2) or (".fc" in name and parameter.ndim == 2)
        assert (id(parameter) in matrices) == hidden, name
    assert groups["matrices"]["lr"] == 5e-3
    optimizer, _ = build_optimizer(model, settings, 4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_muon_trains_matrices_alone_if_nothing_else_is_to_be_trained():
    model = model_with_compressor("lora")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name
    optimizer, _ = build_optimizer(model, OptimizerSettings(lr=1e-3, matrix_lr=5e-3, warmup_ratio=0.0), 4)
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in adapters]
    for parameter in adapters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert not any(torch.equal(parameter, old) for parameter, old in zip(adapters, before, strict=True))


def test_the_cosine_is_the_one_the_original_was_trained_with():
    from transformers import get_cosine_schedule_with_warmup

    total = 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, math.ceil(0.1 * total), total)
    ours = rate_factor(OptimizerSettings(lr=1.0, warmup_ratio=0.1), total)
    for step in range(total + 1):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_constant_schedule_and_floor():
    constant = rate_factor(OptimizerSettings(lr=1.0, warmup_ratio=0.2, schedule="constant"), 10)
    assert [constant(step) for step in (0, 1, 2, 9, 50)] == [0.0, 0.5, 1.0, 1.0, 1.0]
    floored = rate_factor(OptimizerSettings(lr=1.0, warmup_ratio=0.0, min_lr_ratio=0.1), 10)
    assert floored(0) == 1.0
    assert floored(10) == floored(99) == pytest.approx(0.1)


def test_warm_up_stable_decay():
    settings = OptimizerSettings(lr=1.0, warmup_ratio=0.2, schedule="wsd", decay_ratio=0.4, min_lr_ratio=0.1)
    factor = rate_factor(settings, 10)
    expected = [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1]
    assert [factor(step) for step in range(12)] == pytest.approx(expected)


def test_build_optimizer_applies_the_schedule_to_every_group():
    optimizer, schedule = build_optimizer(
        model_with_compressor(), OptimizerSettings(lr=1e-4, compressor_lr=1e-3, warmup_ratio=0.5), 4
    )
    optimizer.step()
    schedule.step()
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == pytest.approx(
        {"base": 5e-5, "base_no_decay": 5e-5, "compressor": 5e-4, "compressor_no_decay": 5e-4}
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "steps"},
        {"warmup_ratio": 2.0},
        {"min_lr_ratio": -0.1},
        {"warmup_ratio": 0.6, "decay_ratio": 0.5, "schedule": "wsd"},
        {"max_skipped_steps": 0},
        {"max_skipped_steps": None},
        {"warmup_ratio": None},
        {"lr": -1e-4},
        {"lr": float("nan")},
        {"compressor_lr": "fast"},
        {"matrix_lr": -1.0},
        {"lora_weight_decay": -0.1},
        {"eps": -1e-8},
        {"lr": None},
        {"eps": None},
        {"weight_decay": True},
        {"betas": [0.9]},
        {"betas": ["a", "b"]},
        {"betas": None},
        {"betas": [0.9, 1.0]},
    ],
)
def test_wrong_settings_are_explained(wrong):
    with pytest.raises(BimbaError, match=f"optimizer.{next(iter(wrong))}"):
        OptimizerSettings(**{"lr": 1.0, **wrong})
