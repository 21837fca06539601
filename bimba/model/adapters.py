"""Live LoRA adapters: what a model's weights are once they are merged, W + alpha / r · B A."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter

from bimba.types import BimbaError

_BASE = "base_layer"  # peft's name of the layer that an adapter stands around


def merged_state_dict(model: PreTrainedModel) -> dict[str, Tensor]:
    """``model.state_dict()`` as if every live peft adapter were merged; ``model`` stays as it is.

    The weights are those ``model`` computes with now: of an adapter that is disabled nothing is merged.

    Raises:
        BimbaError: an adapter of another kind than plain LoRA.
    """
    return {name: tensor() for name, tensor in merged_tensors(model).items()}


def merged_tensors(model: PreTrainedModel) -> dict[str, Callable[[], Tensor]]:
    """The tensors of :func:`merged_state_dict`, each merged when it is called for."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    adapted = {n: m for n, m in model.named_modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)}
    for name, layer in adapted.items():
        _check_plain(name, layer)
    tensors: dict[str, Callable[[], Tensor]] = {}
    for key, tensor in model.state_dict().items():
        name = next((name for name in _parents(key) if name in adapted), None)
        if name is None:
            tensors[key] = partial(_as_it_is, tensor)
        elif key.startswith(f"{name}.{_BASE}."):
            own = key.removeprefix(f"{name}.{_BASE}.")
            tensors[f"{name}.{own}"] = partial(_of_base, model, key, tensor, adapted[name] if own == "weight" else None)
    return tensors


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _of_base(model: PreTrainedModel, key: str, tensor: Tensor, layer: Any) -> Tensor:
    whole = load_offloaded_parameter(model, key) if tensor.is_meta else tensor
    return whole if layer is None else _merged(whole, layer)


def _parents(key: str) -> list[str]:
    """The modules that the tensor ``key`` is in, innermost first."""
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


def _check_plain(name: str, layer: Any) -> None:
    from peft.tuners import lora

    plain = isinstance(layer, lora.Linear | lora.Embedding | lora.Conv2d)
    if not plain or layer.lora_variant or any(layer.lora_bias.values()) or hasattr(layer.base_layer, _BASE):
        raise BimbaError(
            f"The adapter at {name} ({type(layer).__module__}.{type(layer).__name__}) cannot be merged into the "
            "weights to be saved; plain LoRA can, without DoRA, lora_bias or modules_to_save. Unload it, or save it "
            "with peft."
        )


def _merged(weight: Tensor, layer: Any) -> Tensor:
    """The weight of a layer's base with what the layer adds to it."""
    added, removed = layer.active_adapters, []
    if layer.disable_adapters:
        added, removed = [], layer.merged_adapters
    elif layer.merged:  # into the weight itself, by peft
        added = []
    result = weight
    for sign, names in ((1, added), (-1, removed)):
        for name in names:
            if name in layer.scaling:  # not every adapter is at every layer
                delta = layer.get_delta_weight(name).detach().to(weight.device)
                result = result + sign * delta  # in float32, if either is
    return result.to(weight.dtype)
