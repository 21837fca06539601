"""Muon for hidden matrices beside AdamW for the rest: one optimizer to schedules and checkpoints."""

from __future__ import annotations

import copy

import torch
from torch import nn

from bimba.training.optim import MuonWithAdamW, OptimizerSettings, build_optimizer, parameter_groups

SETTINGS = OptimizerSettings(lr=1e-2, matrix_lr=5e-2, weight_decay=0.1, warmup_ratio=0.0, schedule="constant")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projector = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))
        self.language_model = nn.ModuleDict({"embed_tokens": nn.Embedding(5, 4), "norm": nn.LayerNorm(4)})


def step(model: Model, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = model.projector(torch.randn(3, 6, generator=generator)) + model.language_model["embed_tokens"].weight[:3]
    model.language_model["norm"](hidden).square().sum().sub(torch.rand((), generator=generator)).square().backward()
    optimizer.step()
    optimizer.zero_grad()


def groups_by_name(model: Model) -> dict[str, list[str]]:
    names = {id(p): n for n, p in model.named_parameters()}
    return {g["name"]: [names[id(p)] for p in g["params"]] for g in parameter_groups(model, SETTINGS)}


def test_only_hidden_matrices_go_to_muon():
    groups = groups_by_name(Model())
    assert groups["matrices"] == ["projector.0.weight", "projector.2.weight"]
    assert groups["base"] == ["language_model.embed_tokens.weight"]
    assert len(groups["base_no_decay"]) == 4


def test_it_steps_as_muon_and_adamw_would_apart():
    together, apart = Model(), Model()
    one, _ = build_optimizer(together, SETTINGS, total_steps=10)
    assert isinstance(one, MuonWithAdamW)
    matrices = [apart.projector[0].weight, apart.projector[2].weight]
    norms = [p for n, p in apart.named_parameters() if p.ndim == 1]
    others = [
        {"params": [apart.language_model["embed_tokens"].weight], "weight_decay": 0.1},
        {"params": norms, "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(matrices, lr=5e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=1e-2)
    for seed in range(3):
        step(together, one, seed)
        generator_step = Both(muon, adamw)
        step(apart, generator_step, seed)  # type: ignore[arg-type]
    for a, b in zip(together.parameters(), apart.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class Both:
    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()


def test_a_schedule_reaches_both():
    optimizer, schedule = build_optimizer(Model(), OptimizerSettings(lr=1.0, matrix_lr=2.0, warmup_ratio=0.5), 4)
    assert [g["lr"] for g in optimizer.param_groups] == [0.0] * 3
    model = Model()
    optimizer, schedule = build_optimizer(model, OptimizerSettings(lr=1.0, matrix_lr=2.0, warmup_ratio=0.5), 4)
    step(model, optimizer, 0)
    schedule.step()
    assert {g["name"]: g["lr"] for g in optimizer.param_groups} == {"base": 0.5, "base_no_decay": 0.5, "matrices": 1.0}


def test_resumed_is_uninterrupted():
    whole = Model()
    optimizer, _ = build_optimizer(whole, SETTINGS, 10)
    for seed in range(4):
        step(whole, optimizer, seed)

    first = Model()
    optimizer, _ = build_optimizer(first, SETTINGS, 10)
    for seed in range(2):
        step(first, optimizer, seed)
    state = copy.deepcopy(optimizer.state_dict())

    resumed = Model()
    resumed.load_state_dict(first.state_dict())
    optimizer, _ = build_optimizer(resumed, SETTINGS, 10)
    optimizer.load_state_dict(state)
    for seed in range(2, 4):
        step(resumed, optimizer, seed)
    for a, b in zip(whole.parameters(), resumed.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
