"""Step [4]: compressors. One file each, ending with ``COMPRESSOR = TheClass``; its name is the config's ``name``.

A compressor is called with space-time tokens (B, T, H, W, C) and queries (B, T', Q', C) and returns (B, T', Q', C);
``_base.py`` is what all have in common. One that is ``question_conditioned`` also gets the question, (B, P, C).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from bimba.model.compressor._base import Compressor
from bimba.model.compressor.mamba import MambaCompressor
from bimba.model.compressor.pool import PoolCompressor
from bimba.types import BimbaError

__all__ = ["Compressor", "MambaCompressor", "PoolCompressor", "build_compressor", "complete", "what_it_computes"]


_QUESTION = "question_conditioned"
HOW = ("scan_backend", "chunk_tokens")  # options that change how a result is computed, but not the result


def build_compressor(config: Mapping[str, Any] | None, hidden_size: int) -> Compressor | None:
    """The compressor that the node ``model.compressor`` describes: {"name": file, **options}; None for None."""
    if config is None:
        return None
    options = complete(config)
    return _class(options.pop("name"))(hidden_size, **options)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A compressor's config with every option spelled out, so that two of them can be compared.

    Raises:
        BimbaError: an unknown name or option.
    """
    options = dict(config)
    name = options.pop("name", None)
    defaults = _defaults(name)
    if options.get(_QUESTION) and _QUESTION not in defaults:
        raise BimbaError(
            f"compressor {name!r} cannot be conditioned on the question: it has no option {_QUESTION}; those that have "
            f"it are: {', '.join(other for other in _names() if _QUESTION in _defaults(other))}."
        )
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise BimbaError(
            f"compressor {name!r} has no option {', '.join(unknown)}; its options are: {', '.join(defaults) or 'none'}."
        )
    return {"name": name, **defaults, **options}


def what_it_computes(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options that give a compressor's weights their meaning: all but ``HOW``; none for None."""
    return {} if config is None else {key: value for key, value in complete(config).items() if key not in HOW}


def _defaults(name: Any) -> dict[str, Any]:
    """A compressor's options, as its class is written."""
    parameters = inspect.signature(_class(name)).parameters.values()
    return {option.name: option.default for option in parameters if option.name != "hidden_size"}


def _names() -> list[str]:
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_"))


def _class(name: Any) -> type[Compressor]:
    if name not in (known := _names()):
        raise BimbaError(f"model.compressor.name={name!r} is no compressor; choose one of: {', '.join(known)}.")
    kind: type[Compressor] = importlib.import_module(f"{__name__}.{name}").COMPRESSOR
    return kind
