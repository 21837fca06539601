"""Step [4]: compressors. One file each, ending with ``COMPRESSOR = TheClass``; its name is the config's ``name``.

A compressor is called with space-time tokens (B, T, H, W, C) and queries (B, T', Q', C) and returns (B, T', Q', C).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from torch import nn

from bimba.model.compressor.mamba import MambaCompressor
from bimba.model.compressor.pool import PoolCompressor
from bimba.types import BimbaError

__all__ = ["MambaCompressor", "PoolCompressor", "build_compressor"]


def build_compressor(config: Mapping[str, Any] | None, hidden_size: int) -> nn.Module | None:
    """The compressor that the node ``model.compressor`` describes: {"name": file, **options}; None for None."""
    if config is None:
        return None
    options = dict(config)
    name = options.pop("name", None)
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in known:
        raise BimbaError(f"model.compressor.name={name!r} is no compressor; choose one of: {', '.join(known)}.")
    kind: type[nn.Module] = importlib.import_module(f"{__name__}.{name}").COMPRESSOR
    accepted = [option for option in inspect.signature(kind).parameters if option != "hidden_size"]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise BimbaError(
            f"compressor {name!r} has no option {', '.join(unknown)}; its options are: {', '.join(accepted) or 'none'}."
        )
    return kind(hidden_size, **options)
