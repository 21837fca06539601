"""The key map at the real size: every tensor of both published layouts, by name and shape, on the meta device.

Names come from tests/golden/model/param_names.json, which the original wrote, stretched to the real number of layers;
sizes from the published configurations. No weight of the real checkpoints was at hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from bimba.checkpoint.keymap import PEFT_PREFIX, to_original, to_ours
from bimba.checkpoint.lora import Adapter, pair_factors
from bimba.checkpoint.source import expected_shapes
from bimba.checkpoint.tensors import InMemory
from bimba.model.config import BimbaConfig

NAMES = json.loads((Path(__file__).parents[1] / "golden/model/param_names.json").read_text())
LAYERS, VISION_LAYERS, RANK = 28, 26, 128
# tiny size -> real size, per kind of module: the shapes of the tiny checkpoint are stretched by these.
TEXT = {416: 152064, 64: 3584, 32: 512, 128: 18944}  # vocabulary, hidden, keys and values, MLP
VISION = {48: 1152, 96: 4304, 16: 729, 14: 14, 3: 3}  # hidden, MLP, positions, patch, colours


def real_size(name: str, shape: list[int]) -> tuple[int, ...]:
    if "compressor" in name:
        return tuple(NAMES["compressor_at_real_size_3584"][name])
    if "vision_tower" in name:
        return tuple(VISION[n] for n in shape)
    if "mm_projector.0.weight" in name:
        return (3584, 1152)
    return tuple(TEXT[n] for n in shape)


def stretched(name: str) -> list[str]:
    """The name at every layer of the real model, from its name in layer 0."""
    layers = VISION_LAYERS if "vision_tower" in name else LAYERS
    if "compressor" in name or not re.search(r"\.layers\.\d+\.", name):
        return [name]
    return [re.sub(r"\.layers\.0\.", f".layers.{i}.", name) for i in range(layers)] if ".layers.0." in name else []


def published(with_compressor: bool) -> dict[str, tuple[int, ...]]:
    return {
        full: real_size(name, shape)
        for name, (shape, _) in NAMES["tiny_full_checkpoint"].items()
        if with_compressor or "compressor" not in name
        for full in stretched(name)
    }


def stored(shapes: dict[str, tuple[int, ...]]) -> dict[str, InMemory]:
    return {name: InMemory(torch.empty(shape, device="meta"), "model.safetensors") for name, shape in shapes.items()}


def test_the_full_layout_with_and_without_compressor():
    for compressor in (None, {"name": "mamba"}):
        theirs = published(compressor is not None)
        ours = {to_ours(name): shape for name, shape in theirs.items()}
        assert ours == expected_shapes(BimbaConfig(compressor=compressor))
        assert {to_original(name) for name in ours} == set(theirs)
    assert len(theirs) == 3 + 12 * LAYERS + 5 + 16 * VISION_LAYERS + 4 + 1 + 17
    assert sum(torch.Size(shape).numel() for name, shape in theirs.items() if "compressor" in name) == 84_284_928


def test_the_adapter_layout():
    config = BimbaConfig(compressor={"name": "mamba"})
    of_base = stored({to_ours(name): shape for name, shape in published(False).items()})
    trained = {name.removeprefix(PEFT_PREFIX) for name in NAMES["non_lora_trainables_bin"]}
    everything = published(True)
    overlaid = {**of_base, **stored({to_ours(name): everything[name] for name in trained})}
    assert {name: tensor.shape for name, tensor in overlaid.items()} == expected_shapes(config)

    factors = {}
    for name in NAMES["lora_adapter_model_bin"]:
        for full in stretched(name.removeprefix(PEFT_PREFIX)):
            layer = full.rsplit(".lora_", 1)[0]
            out, into = everything[f"{layer}.weight"]
            factors[to_ours(full)] = (RANK, into) if "lora_A" in full else (out, RANK)
    assert len(factors) == 4 * (LAYERS + VISION_LAYERS)
    adapter = Adapter({"r": RANK, "lora_alpha": 32}, pair_factors(Path("adapter"), stored(factors)))
    assert adapter.scaling == 0.25
    merged = adapter.merge(overlaid)
    assert {name: tensor.shape for name, tensor in merged.items()} == expected_shapes(config)
    assert sum(merged[name] is not overlaid[name] for name in merged) == 2 * (LAYERS + VISION_LAYERS)
