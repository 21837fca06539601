"""Keys on the command line that no configuration has: which one was meant. Hydra refuses them, but does not say."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def naming_unknown_keys(conf: Path, name: str, arguments: Sequence[str]) -> Iterator[None]:
    """Around Hydra's main function: adds the nearest keys to its refusal, which has been printed by then.

    Args:
        conf: the folder of configurations.
        name: of the one that is composed there, such as "train".
        arguments: of the command line.

    Raises:
        SystemExit: as Hydra's, with the lines of :func:`unknown_keys` as its message if there are some.
    """
    try:
        yield
    except SystemExit as stop:
        lines = unknown_keys(conf, name, arguments) if stop.code == 1 else []
        if not lines:
            raise
        raise SystemExit("\n".join(lines)) from None


def unknown_keys(conf: Path, name: str, arguments: Sequence[str]) -> list[str]:
    """A line for each override of a key that there is not, with the one that it resembles.

    Groups count with what was chosen for them. Empty if something else is wrong, which Hydra's own message says: an
    option that a group does not have, or a word that is no override.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    groups = {path.parent.relative_to(conf).as_posix() for path in conf.rglob("*.yaml")} - {"."}
    try:
        overrides = OverridesParser.create().parse_overrides([word for word in arguments if not word.startswith("-")])
        chosen = [
            f"{override.key_or_group}={value}"
            for override in overrides
            if override.key_or_group in groups and isinstance(value := _first(override), str)
        ]
        GlobalHydra.instance().clear()  # Hydra's main function has left its own
        with initialize_config_dir(str(conf), version_base="1.3"):
            composed = compose(name, chosen, return_hydra_config=True)
    except HydraException:
        return []
    tree = OmegaConf.to_container(composed)
    asked = [o.key_or_group for o in overrides if not (o.is_add() or o.is_force_add()) and o.package is None]
    return [line for key in asked if key not in groups and (line := _describe(key, tree, sorted(groups), conf))]


def _first(override: Any) -> Any:
    """Its value, the first one of a sweep."""
    return next(override.sweep_string_iterator()) if override.is_sweep_override() else override.value()


def _describe(key: str, tree: Any, groups: Sequence[str], conf: Path) -> str | None:
    """What to say about a dotted key; None if it is there."""
    names = key.split(".")
    node = tree
    for depth, name in enumerate(names):
        if not isinstance(node, dict):
            return f"There is no key {key}; {'.'.join(names[:depth])} has no keys of its own."
        if name not in node:
            hint = _other_choices(conf, names[:depth], name) or _hint(names, depth, node, tree, groups)
            return f"There is no key {key}; {hint}"
        node = node[name]
    return None


def _other_choices(conf: Path, place: Sequence[str], name: str) -> str | None:
    """Which other files of the same group have the key, if there are some."""
    from omegaconf import OmegaConf

    files = sorted(conf.joinpath(*place).glob("*.yaml")) if place else []
    having = [f"{'/'.join(place)}={file.stem}" for file in files if name in OmegaConf.load(file)]
    return f"those that have it: {', '.join(having)}." if having else None


def _hint(names: Sequence[str], depth: int, node: Any, tree: dict[str, Any], groups: Sequence[str]) -> str:
    """What was meant by names whose ``depth``-th is not in ``node``: a similar one, or one of that name elsewhere."""
    here = list(groups) if "/" in names[0] else [str(name) for name in node if name != "hydra"]
    meant, options = list(names[:depth]), here
    for name in names[depth:]:
        similar = difflib.get_close_matches(name, options, n=1)
        if not similar:
            break
        meant.append(similar[0])
        node = node.get(similar[0])
        options = list(map(str, node)) if isinstance(node, dict) else []
    if len(meant) > depth:
        return f"did you mean {'.'.join(meant)}?"
    elsewhere = [path for path in _paths(tree) if path.split(".")[-1] == names[-1] and not path.startswith("hydra.")]
    if 0 < len(elsewhere) <= 3:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"expected one of {', '.join(sorted(here))}."


def _paths(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys."""
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")
