"""Step [4]: compressors. One file each, ending with ``COMPRESSOR = TheClass``; its name is the config's ``name``.

A compressor is called with space-time tokens (B, T, H, W, C) and queries (B, T', Q', C) and returns (B, T', Q', C);
``_base.py`` is what all have in common. One that is ``question_conditioned`` also gets the question, (B, P, C).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from bimba.model.compressor._base import Compressor
from bimba.model.compressor.mamba import MambaCompressor
from bimba.model.compressor.pool import PoolCompressor
from bimba.types import BimbaError

__all__ = [
    "Compressor",
    "MambaCompressor",
    "PoolCompressor",
    "build_compressor",
    "complete",
    "names",
    "reduction_of",
    "what_it_computes",
]


_QUESTION = "question_conditioned"
HOW = ("scan_backend", "chunk_tokens")  # options that change how a result is computed, but not the result
START = ("backward_init",)  # options of how fresh weights begin: what trained ones mean does not depend on it
# Options of every compressor that are the model's to read: how many queries it pools. Weights fit any number of them.
SHARED = ("reduction",)


def build_compressor(config: Mapping[str, Any] | None, hidden_size: int) -> Compressor | None:
    """The compressor that the node ``model.compressor`` describes: {"name": file, **options}; None for None."""
    if config is None:
        return None
    reduction_of(config)  # says what is wrong with it
    options = {key: value for key, value in complete(config).items() if key not in SHARED}
    return _class(options.pop("name"))(hidden_size, **options)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A compressor's config with every option spelled out, so that two of them can be compared.

    Raises:
        BimbaError: an unknown name or option.
    """
    options = dict(config)
    name = options.pop("name", None)
    defaults = _defaults(name) | dict.fromkeys(SHARED)
    if options.get(_QUESTION) and _QUESTION not in defaults:
        raise BimbaError(
            f"compressor {name!r} cannot be conditioned on the question: it has no option {_QUESTION}; those that have "
            f"it are: {', '.join(other for other in names() if _QUESTION in _defaults(other))}."
        )
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise BimbaError(
            f"compressor {name!r} has no option {', '.join(unknown)}; its options are: {', '.join(defaults)}."
        )
    return {"name": name, **defaults, **options}


def reduction_of(config: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """(frames, rows): what one query stands for, if the compressor says so; else None, the published pooling.

    Raises:
        BimbaError: an unknown compressor, no pair of positive numbers, or one that this compressor does not do.
    """
    if config is None:
        return None
    given, fixed = complete(config)["reduction"], _class(config["name"]).fixed_reduction
    if given is None:
        return fixed
    pair = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if len(pair) != 2 or any(type(number) is not int or number < 1 for number in pair):
        raise BimbaError(
            f"model.compressor.reduction is {given!r}; expected null (the published pooling), or [frames, rows]: how "
            "many frames, and patch rows and columns, one query stands for, such as [4, 2]."
        )
    if fixed is not None and pair != fixed:
        raise BimbaError(
            f"model.compressor.reduction is {list(pair)}, but {config['name']!r} has {list(fixed)} always; leave it "
            "null, or choose another compressor."
        )
    return pair


def what_it_computes(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options that give a compressor's weights their meaning: all but ``HOW``, ``START`` and ``SHARED``.

    None for None.
    """
    left_out = (*HOW, *START, *SHARED)
    return {} if config is None else {key: value for key, value in complete(config).items() if key not in left_out}


def _defaults(name: Any) -> dict[str, Any]:
    """A compressor's options, as its class is written."""
    parameters = inspect.signature(_class(name)).parameters.values()
    return {option.name: option.default for option in parameters if option.name != "hidden_size"}


def names() -> list[str]:
    """Of all compressors, in alphabetical order."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if not name.startswith("_"))


def _class(name: Any) -> type[Compressor]:
    if name not in (known := names()):
        raise BimbaError(f"model.compressor.name={name!r} is no compressor; choose one of: {', '.join(known)}.")
    kind: type[Compressor] = importlib.import_module(f"{__name__}.{name}").COMPRESSOR
    return kind
