"""LoRA adapters folded into the weights they adapt, on a copy."""

from __future__ import annotations

from torch import Tensor, nn


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """``model.state_dict()`` as it would be after merging every live peft adapter; ``model`` stays as it is."""
    from peft.tuners.lora import LoraLayer

    state = dict(model.state_dict())
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        weight = state[f"{name}.base_layer.weight"]
        for adapter in layer.active_adapters:
            delta: Tensor = layer.get_delta_weight(adapter)  # type: ignore[attr-defined]  # every linear layer's has it
            weight = weight + delta.to(weight.dtype)
        for key in [key for key in state if key.startswith(f"{name}.")]:
            value = state.pop(key)
            if key.startswith(f"{name}.base_layer."):
                state[key.replace(".base_layer.", ".")] = value
        state[f"{name}.weight"] = weight
    return state
