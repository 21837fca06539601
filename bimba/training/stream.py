"""The weights of a base from their files into the parts of a sharded model, one tensor in memory at a time.

The model begins as an outline (``bimba.checkpoint.outline_pretrained``). Its adapters are put in as usual, then the
stored weights become meta tensors and are dealt out without memory. Only then each process gets memory for its parts,
and fills it. So a process never holds more than its share of the model and one weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bimba.checkpoint import Stored
from bimba.training.parallel import ShardedStrategy, deal_out, local, part_like

_BASE = ".base_layer."  # peft's name of the layer that an adapter stands around


def shard(module: Any, strategy: ShardedStrategy, precision: str, tensors: Mapping[str, Stored] | None = None) -> None:
    """Deals out the weights of a ``BimbaModule`` over the processes.

    Args:
        precision: of the trainer, see ``parallel.deal_out``.
        tensors: what is still to be read; None: the model has all its weights.
    """
    deal_out(module, strategy, precision)
    if tensors is not None:
        fill(module.model, tensors, torch.device("cpu") if strategy.cpu_offload else strategy.root_device)


def to_meta(model: nn.Module, tensors: Mapping[str, Stored]) -> None:
    """Makes meta tensors of the weights that are to be read."""
    _replace(model, tensors, lambda parameter, _: torch.empty_like(parameter, device="meta"))


def fill(model: nn.Module, tensors: Mapping[str, Stored], device: torch.device) -> None:
    """Gives every meta tensor of a sharded model memory and what is stored of it.

    Args:
        model: after ``parallel.shard``.
        tensors: by the names that the weights have without adapters.
        device: where the parts are to lie.
    """
    to_read: list[tuple[Tensor, Stored]] = []

    def make(parameter: Tensor, stored: Stored) -> Tensor:
        own = torch.empty_like(parameter, device=device)
        to_read.append((own, stored))
        return own

    # All that is kept comes before the first whole weight. In turns, malloc would be left with a hole between two parts
    # for each whole weight that was freed, and give none of them back to the system.
    _replace(model, tensors, make)
    for own, stored in to_read:
        local(own).copy_(part_like(stored[...], own))


def _replace(model: nn.Module, tensors: Mapping[str, Stored], make: Callable[[Tensor, Any], Tensor]) -> None:
    """Puts other tensors in the place of the stored weights; a tied one stays tied."""
    made: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        stored = tensors.get(name.replace(_BASE, "."))
        if stored is None and id(parameter) not in made:
            continue
        if id(parameter) not in made:
            new = make(parameter.detach(), stored)
            made[id(parameter)] = nn.Parameter(new, requires_grad=parameter.requires_grad)
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, made[id(parameter)])
