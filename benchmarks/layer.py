"""What the two benchmarks of the layer share: ways to call it, all on the parameters of one, and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bimba.model.compressor import MambaCompressor
from bimba.model.mamba import cast

GRID = 27
Layer = Callable[[Tensor, Tensor], Tensor]


def make(hidden_size: int, dtype: torch.dtype, device: str = "cpu", mixer: str = "mamba") -> MambaCompressor:
    torch.manual_seed(0)
    with torch.device(device):
        compressor = MambaCompressor(hidden_size, mixer=mixer)  # type: ignore[arg-type]
        # out_proj starts at zero, which would hide what is computed
        nn.init.normal_(compressor.layers[0].mixer.out_proj.weight, std=0.02)
    cast(compressor, dtype)
    return compressor


@dataclass(frozen=True)
class Ours:
    """The compressor, so many positions at a time; 0: all at once."""

    compressor: MambaCompressor
    chunk_tokens: int = 0

    def __call__(self, tokens: Tensor, queries: Tensor) -> Tensor:
        self.compressor.chunk_tokens = self.chunk_tokens
        y: Tensor = self.compressor(tokens, queries)
        return y


@dataclass(frozen=True)
class EveryPosition:
    """The same layer with everything computed at every position, and the queries selected afterwards."""

    compressor: MambaCompressor

    def __call__(self, tokens: Tensor, queries: Tensor) -> Tensor:
        tokens, flat = tokens.flatten(1, 3), queries.flatten(1, 2)
        index = self.compressor.query_index(tokens.shape[1], flat.shape[1]).to(tokens.device)
        y: Tensor = self.compressor.layers[0](tokens, flat, index, everything=True)
        return y[:, index].view(queries.shape)


def quarter(frames: int) -> int:
    """chunk_tokens to compare with: four pieces, however short the video; more would add up more bfloat16 rounding."""
    return frames * (GRID**2 + ((GRID + 1) // 2) ** 2) // 4 + 1


def run(layer: Layer, tokens: Tensor, queries: Tensor, backward: bool) -> list[Tensor]:
    """The refined queries, and the gradients of tokens, queries and every parameter."""
    if not backward:
        with torch.no_grad():
            return [layer(tokens, queries)]
    tokens, queries = tokens.detach().requires_grad_(), queries.detach().requires_grad_()
    owner = getattr(layer, "compressor", layer)
    parameters = list(owner.parameters()) if isinstance(owner, nn.Module) else []
    y = layer(tokens, queries)
    # the gradients of half the sum of squares; zeros for what a layer does not use
    return [y.detach(), *torch.autograd.grad(y, [tokens, queries, *parameters], y.detach(), materialize_grads=True)]
