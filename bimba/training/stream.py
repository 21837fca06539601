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
from torch.distributed.tensor import DTensor

from bimba.checkpoint import Stored
from bimba.training.parallel import ShardedStrategy, deal_out, part_like

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

    def read(parameter: Tensor, stored: Stored) -> Tensor:
        full = stored[...].to(parameter.dtype)
        if not isinstance(parameter, DTensor):
            return full.to(device, copy=True)
        return DTensor.from_local(
            part_like(full, parameter).to(device, copy=True),  # a copy, or the whole would stay in memory with it
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )

    _replace(model, tensors, read)


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
