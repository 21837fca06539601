"""Weights go from their files into a model that has none, one at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import EllipsisType

import torch
from torch import Tensor, nn

from bimba.training.stream import fill, to_meta


@dataclass
class InFile:
    """A tensor that notes, whenever it is read, which weights of the model have no memory yet."""

    tensor: Tensor
    model: nn.Module
    without_memory: list[list[str]] = field(default_factory=list)
    file: str = "model.safetensors"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def __getitem__(self, all_of_it: EllipsisType) -> Tensor:
        self.without_memory.append([name for name, weight in self.model.named_parameters() if weight.is_meta])
        return self.tensor


def test_all_memory_that_is_kept_comes_before_the_first_weight_is_read():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(4, 5)).half()
    model[2].weight = model[1].weight  # tied
    model[0].weight.requires_grad_(False)
    names = ("0.weight", "0.bias", "1.weight", "1.bias")
    stored = {name: InFile(torch.randn(model.get_parameter(name).shape), model) for name in names}
    fresh = model[2].bias.detach().clone()

    to_meta(model, stored)
    assert all(model.get_parameter(name).is_meta for name in names)
    fill(model, stored, torch.device("cpu"))

    for name, one in stored.items():
        assert one.without_memory == [[]]  # read once, when every weight had its place
        torch.testing.assert_close(model.get_parameter(name).detach(), one.tensor.half(), rtol=0, atol=0)
    assert model[2].weight is model[1].weight
    assert [weight.requires_grad for weight in model.parameters()] == [False, True, True, True, True]
    assert torch.equal(model[2].bias, fresh)  # of which nothing is stored
