"""What tells the cells of a sweep apart: their compressor, and the settings that vary within it; seeds are replicas."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bimba.report.sweep.cell import Cell

NONE = "(none)"
# What differs between runs and is no part of what is compared.
OF_A_RUN = {"seed", "resume", "resume_with_changes", "save_frozen", "show_traceback", "trainer.default_root_dir"}
GROUPS_OF_A_RUN = ("paths.", "logger.", "hydra.", "evaluate.")
# Settings that are an axis of a plot; by the last part of their key.
FRAMES = ("num_frames",)
COMPRESSION = ("reduction", "temporal_pooling")


@dataclass(frozen=True)
class Label:
    """The name of cells that differ in their seed alone.

    Attributes:
        settings: key and value of what varies among the cells with this compressor.
        short: the keys as they are shown, the last parts that tell them apart.
        fixed: key and value of what varies among the cells with another compressor, and not among these.
    """

    compressor: str
    settings: tuple[tuple[str, str], ...] = ()
    short: tuple[str, ...] = ()
    fixed: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        return self.without(())

    @property
    def said(self) -> set[str]:
        """Its compressor and its settings as KEY=VALUE, each key as it is shown and in full: names of a baseline."""
        full = {f"{key}={value}" for key, value in self.settings}
        return {self.compressor} | full | {f"{short}={value}" for short, (_, value) in zip(self.short, self.settings)}

    def differs_from(self, baseline: Label, name: str) -> bool:
        """Whether what ``name`` names is all in which ``baseline`` is another: its compressor, or one setting."""
        if name == baseline.compressor:
            here, there = (dict((*label.settings, *label.fixed)) for label in (self, baseline))
            return all(here.get(key, value) == value for key, value in there.items())
        key = name.partition("=")[0]
        return self.compressor == baseline.compressor and all(
            key in (full, short) or value == other
            for short, (full, value), (_, other) in zip(self.short, self.settings, baseline.settings)
        )

    def without(self, endings: Collection[str]) -> str:
        """The name without the settings that an axis shows."""
        shown = [
            f"{short}={value}"
            for short, (key, value) in zip(self.short, self.settings)
            if key.rpartition(".")[2] not in endings
        ]
        return " ".join([self.compressor, *shown])


def label_cells(cells: Sequence[Cell]) -> list[Label]:
    """A label for each cell."""
    configs = [comparable(cell) for cell in cells]
    follow = {  # references to the seed where the configuration has them resolved
        key
        for config in configs
        for key in config
        if key.endswith(".seed") and all(cell.config.get(key, cell.seed) == cell.seed for cell in cells)
    }
    varying: dict[str, list[str]] = {}
    for compressor in dict.fromkeys(cell.compressor for cell in cells):
        own = [config for cell, config in zip(cells, configs) if cell.compressor == compressor]
        keys = dict.fromkeys(key for config in own for key in config if key not in follow)
        varying[compressor] = [key for key in keys if len({config.get(key, NONE) for config in own}) > 1]
    shown = _shortened({key for keys in varying.values() for key in keys})
    common = [key for key in shown if not _is_own(key)]
    labels = []
    for cell, config in zip(cells, configs):
        keys_here = varying[cell.compressor]
        settings = tuple((key, config.get(key, NONE)) for key in keys_here)
        fixed = tuple((key, config[key]) for key in common if key in config and key not in keys_here)
        labels.append(Label(cell.compressor, settings, tuple(shown[key] for key in keys_here), fixed))
    return labels


def _is_own(key: str) -> bool:
    """Whether it is an option that means something else, or nothing, in another compressor."""
    return key.startswith("model.compressor.") and key.rpartition(".")[2] not in COMPRESSION


def comparable(cell: Cell) -> dict[str, str]:
    """The settings of a run as text, without those that are of this run alone: its seed, its folder."""
    folder = cell.config.get("paths.run_dir")
    found = {}
    for key, value in cell.config.items():
        if key in OF_A_RUN or key == "evaluate" or key.startswith(GROUPS_OF_A_RUN):
            continue
        if isinstance(value, str) and not is_reference(value) and folder and str(folder) in value:
            continue
        found[key] = as_text(value)
    return found


def is_reference(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def as_text(value: Any) -> str:
    """As YAML's one-line form has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _shortened(keys: Iterable[str]) -> dict[str, str]:
    """The last parts of each key, as many as tell it from the others."""
    names = sorted(keys)
    found = {}
    for key in names:
        parts = key.split(".")
        endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        found[key] = next(ending for ending in endings if sum(f".{name}".endswith(f".{ending}") for name in names) == 1)
    return found
