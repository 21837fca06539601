"""What the cells' settings change: of the default configuration, and among each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bimba.places import CONF
from bimba.report.facts import flat
from bimba.report.sweep.cell import Cell
from bimba.report.sweep.label import NONE, as_text, comparable, is_reference

Change = tuple[str, str, str]  # key, default, value


def defaults_of(compressors: Iterable[str]) -> tuple[dict[str, dict[str, Any]], str]:
    """For each compressor the default configuration with it, flat and unresolved; and what is amiss, or "".

    The configuration is that of the code that makes the report.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    found, unknown = {}, []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in compressors:
            try:
                cfg = compose("train", [f"model/compressor={name}"])
            except HydraException:
                unknown.append(name)
            else:
                found[name] = flat(OmegaConf.to_container(cfg, resolve=False))
    if unknown:
        return found, f"conf/model/compressor has no {', '.join(unknown)}; these cells are not compared with a default."
    return found, ""


def changes_of(cell: Cell, defaults: Mapping[str, Mapping[str, Any]]) -> list[Change]:
    """What a cell changes of the default with its compressor; empty if there is none to compare with."""
    default = defaults.get(cell.compressor)
    if default is None:
        return []
    here = comparable(cell)
    resolved = not any(is_reference(value) for value in cell.config.values())
    before = comparable(Cell("", Path(), "", config=dict(default)))
    return [
        (key, before.get(key, NONE), here.get(key, NONE))
        for key in dict.fromkeys([*before, *here])
        if before.get(key, NONE) != here.get(key, NONE)
        and not (resolved and is_reference(default.get(key)))
        and not _is_replaced(key, here)
    ]


def _is_replaced(key: str, here: Mapping[str, str]) -> bool:
    """Whether a node took the place of a value, or a value (such as null) that of a node, and so says what changed."""
    parts = key.split(".")
    above = (".".join(parts[:n]) for n in range(1, len(parts)))
    return key not in here and (any(one in here for one in above) or any(one.startswith(f"{key}.") for one in here))


def shared_changes(cells: Sequence[Cell], defaults: Mapping[str, Mapping[str, Any]]) -> list[Change]:
    """The changes that all cells have."""
    own = [changes_of(cell, defaults) for cell in cells]
    return [change for change in own[0] if all(change in others for others in own[1:])] if own else []


def setting(cell: Cell, key: str) -> str:
    return as_text(cell.config[key]) if key in cell.config else NONE
