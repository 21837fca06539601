"""[6] Keys and values of a beginning that is read once and continued many times."""

from __future__ import annotations

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def layers_of(cache: DynamicCache) -> list[DynamicLayer]:
    """The cache, layer by layer; every layer of Qwen2's is a DynamicLayer."""
    return [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]


def states_of(layer: DynamicLayer) -> tuple[Tensor, ...]:
    """Keys and values, each (B, heads, L, head size), once there are any."""
    return tuple(state for state in (layer.keys, layer.values) if state is not None)


def cut_to(cache: DynamicCache, length: int) -> DynamicCache:
    """The cache, of the first ``length`` positions alone.

    Each layer is cut by what it holds: an interrupted answer leaves layers of different lengths behind.
    """
    for layer in layers_of(cache):
        layer.crop(min(length - layer.get_seq_length(), 0))
    return cache


def copy_of(cache: DynamicCache) -> DynamicCache:
    """The same keys and values in memory of their own."""
    return DynamicCache([states_of(layer) for layer in layers_of(cache)])  # copies what it is given
