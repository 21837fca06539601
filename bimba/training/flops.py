"""How many floating-point operations a training step needs, for MFU.

The model: what the mathematics needs, not what the hardware happens to do. Counted are matrix products (two operations
per multiply-add), both products of attention, and of the compressor what it says of itself (``Compressor.products``).
Padding, layers computed again by gradient checkpointing, norms, pointwise functions and a question before the
compressor's sequence are not.

==============  =================================================================================================
forward         2 x elements of each matrix x positions it is applied to;
                attention over P positions of width C: 4 P^2 C, half of that if causal;
                scan: 6 N D per position and direction (decay, input, sum), 2 N D where it is read
head            only at the tokens that are learned
backward        as much again for each matrix that is trained (its gradient),
                and as much again for each matrix behind something trained (the gradient of its input);
                twice the forward for attention and scan behind something trained, as both factors are activations
==============  =================================================================================================

So LoRA on a frozen language model is 4 operations per element and token, where full training is 6, and a frozen vision
tower is 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor, nn

from bimba.model.queries import query_grid
from bimba.types import BimbaError


@dataclass
class Cost:
    """Operations of one part in a forward pass.

    Attributes:
        frozen, trained: of matrices whose weights are not trained, and that are.
        first: the share of these whose input is the part's input.
        activations: of products of activations with each other.
        no_gradient: of such that no gradient goes through.
    """

    frozen: float = 0.0
    trained: float = 0.0
    first: float = 0.0
    activations: float = 0.0
    no_gradient: float = 0.0

    @property
    def forward(self) -> float:
        return self.frozen + self.trained + self.activations + self.no_gradient

    def add(self, weights: Iterable[Tensor], positions: float, first: bool = False) -> None:
        """Matrices that are each applied to so many positions."""
        for weight in weights:
            operations = 2.0 * weight.numel() * positions
            if weight.requires_grad:
                self.trained += operations
            else:
                self.frozen += operations
            if first:
                self.first += operations


@dataclass(frozen=True)
class Work:
    """What went through the model.

    Attributes:
        lengths: tokens of each sample, padding left out.
        num_answers: tokens that are learned, in all samples.
        videos: frames of each video.
        num_tiles: of all images.
    """

    lengths: Sequence[int]
    num_answers: int
    videos: Sequence[int]
    num_tiles: int = 0


def count_flops(model: Any, work: Work, backward: bool = True) -> float:
    """The operations that a ``BimbaForConditionalGeneration`` needs.

    Args:
        backward: with the backward pass, for what is trained now.
    """
    num_frames = sum(work.videos) + work.num_tiles
    costs = [
        _vision_tower(model, num_frames),
        _projector(model, num_frames),
        _compressor(model, work.videos),
        _language_model(model, work.lengths, work.num_answers),
    ]
    total = sum(cost.forward for cost in costs)
    is_behind = False  # whether anything before this part is trained
    for cost in costs if backward else []:
        total += cost.trained
        if is_behind or cost.trained:
            total += cost.frozen + cost.trained + 2 * cost.activations - (0 if is_behind else cost.first)
        is_behind = is_behind or cost.trained > 0
    return total


def _matrices(module: nn.Module, without: tuple[str, ...] = ()) -> list[Tensor]:
    return [p for name, p in module.named_parameters() if p.ndim > 1 and not any(part in name for part in without)]


def _vision_tower(model: Any, num_frames: int) -> Cost:
    config = model.config.vision_config
    patches = (config.image_size // config.patch_size) ** 2
    cost = Cost()
    cost.add(_matrices(model.vision_tower, ("position_embedding", "patch_embedding", "head.")), num_frames * patches)
    cost.add(_matrices(model.vision_tower.embeddings.patch_embedding), num_frames * patches, first=True)
    cost.activations = 4.0 * patches**2 * config.hidden_size * config.num_hidden_layers * num_frames
    return cost


def _projector(model: Any, num_frames: int) -> Cost:
    cost = Cost()
    for number, weight in enumerate(_matrices(model.projector)):
        cost.add([weight], num_frames * model.config.patch_grid**2, first=number == 0)
    return cost


def _compressor(model: Any, videos: Sequence[int]) -> Cost:
    """``videos``: how many frames each has."""
    cost = Cost()
    side = model.config.patch_grid
    for num_frames in videos if model.compressor is not None else ():
        groups, rows = query_grid(num_frames, side, model.config.reduction)
        for matrix, count in model.compressor.products((num_frames, side, side), (groups, rows**2)):
            if matrix is None:
                cost.activations += count
            elif isinstance(matrix, str):
                cost.no_gradient += count
            else:
                cost.add([matrix], count)
    return cost


def _language_model(model: Any, lengths: Sequence[int], num_answers: int) -> Cost:
    config = model.config.text_config
    decoder, head = model.language_model.model, model.language_model.get_output_embeddings()
    cost = Cost()
    cost.add(_matrices(decoder.layers), sum(lengths))
    cost.add([head.weight], num_answers)
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    cost.activations = 2.0 * sum(length**2 for length in lengths) * width * config.num_hidden_layers
    return cost


def peak_flops(trainer: L.Trainer, given: float | None) -> float | None:
    """Operations per second of one device at its best; None where nobody knows, and always on a CPU.

    Args:
        given: overrides Lightning's table of GPUs.

    Raises:
        BimbaError: ``given`` is not positive.
    """
    if given is not None:
        if given <= 0:
            raise BimbaError(f"callbacks.throughput.peak_flops is {given}; expected a positive number, or null.")
        return float(given)
    device = trainer.strategy.root_device
    if device.type == "cpu":
        return None
    precision = str(trainer.precision)
    dtype = torch.bfloat16 if "bf16" in precision else torch.float16 if precision.startswith("16") else torch.float32
    found = get_available_flops(device, dtype)
    return None if found is None else float(found)
