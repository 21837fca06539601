"""One run of a sweep, read from its folder, whatever state that is in."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bimba.report.facts import flat
from bimba.report.sweep.answers import Evaluated, read_evaluation
from bimba.report.sweep.collect import CONFIG, RUN, SWEEP, Found
from bimba.types import BimbaError

FINISHED, UNFINISHED, FAILED = "finished", "unfinished", "failed"
CURVES = ("train/loss", "val/loss", "val/accuracy")


@dataclass(frozen=True)
class Cell:
    """A run.

    Attributes:
        status: "finished", "unfinished" (running, or interrupted) or "failed".
        reason: why it is not finished.
        config: its keys, nested ones with dots, before references are resolved where the run has them so.
        record: of run.json; empty without.
        version: of the code, as ``bimba.training.code_version`` writes it; empty if the run does not say.
        curves: name -> (step, value), in order.
        trouble: what could not be read, or is doubtful, though the run is finished.
    """

    name: str
    folder: Path
    status: str
    reason: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    version: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, Evaluated] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def compressor(self) -> str:
        return str(self.config.get("model.compressor.name", "unknown"))

    @property
    def compression(self) -> float | None:
        """Patch tokens for each token that the language model reads; None if the run does not say."""
        counts = self.record.get("compression") or {}
        patches, visual = counts.get("patch_tokens"), counts.get("visual_tokens")
        return patches / visual if patches and visual else None

    def number(self, name: str) -> float | None:
        value = self.record.get(name)
        return float(value) if isinstance(value, int | float) else None


def read_cell(found: Found) -> Cell:
    """Reads a run; what is wrong with its files makes it a failed one with a reason, not an error."""
    folder = found.folder
    try:
        record = _json(folder / RUN) or {}
        status, reason = _status(folder, record, found.planned)
        version = record.get("code_version") or _json(folder / "code.json") or {}
        cell = Cell(found.name, folder, status, reason, _config(folder), record, version, {}, _curves(folder))
    except BimbaError as error:
        return Cell(found.name, folder, FAILED, f"unreadable: {error}")
    if status == FINISHED:
        if "model.compressor.name" not in cell.config:
            return Cell(found.name, folder, FAILED, f"{folder} has no config.yaml with model.compressor.name")
        _read_evaluations(cell)
    return cell


def _read_evaluations(cell: Cell) -> None:
    folder = cell.folder / "evaluation"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.is_dir():
            continue
        try:
            cell.evaluations[path.name] = read_evaluation(path)
        except BimbaError as error:
            cell.trouble.append(f"evaluation {path.name}: {error}")
        else:
            cell.trouble.extend(f"evaluation {path.name}: {what}" for what in cell.evaluations[path.name].trouble)


def _status(folder: Path, record: Mapping[str, Any], planned: Mapping[str, Any]) -> tuple[str, str]:
    said = record.get("status") or planned.get("status")
    error = record.get("error") or planned.get("error")
    if said == "finished":
        return FINISHED, ""
    if planned.get("status") == "interrupted" and said != "running":  # run.json says "failed", as of any run that ended
        return UNFINISHED, str(error or "interrupted")
    if said == "failed" or (error and said != "running"):
        return FAILED, str(error or "it does not say why; see train.log in its folder")
    if said is None and (folder / "checkpoint" / "config.json").is_file():  # train.py alone, before there was run.json
        return FINISHED, ""
    if said == "running":
        ended = f"; {SWEEP} says how: {planned['error']}" if planned.get("error") else ""
        return UNFINISHED, f"running, or interrupted: {RUN} says that it has begun{ended}"
    if said == "waiting":
        return UNFINISHED, f"not begun: the sweep ended before its turn, or goes on ({SWEEP})"
    return UNFINISHED, str(said or "no checkpoint yet")


def _config(folder: Path) -> dict[str, Any]:
    """As Hydra composed it if that is there: a reference is then one word, and no path of this very run."""
    for path in (folder / ".hydra" / CONFIG, folder / CONFIG):
        if path.is_file():
            try:
                content = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise BimbaError(f"{path} cannot be read ({error}).") from error
            if not isinstance(content, dict):
                raise BimbaError(f"{path} is no configuration.")
            return flat(content)
    return {}


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    path = folder / "metrics.csv"
    if not path.is_file():
        return {}
    found: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name in CURVES:
                    if row.get(name) and row.get("step"):
                        found[name][int(row["step"])] = float(row[name])  # a step that was done again counts once
    except (OSError, ValueError, csv.Error) as error:
        raise BimbaError(f"{path} cannot be read ({error}).") from error
    return {name: sorted(values.items()) for name, values in found.items() if values}


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BimbaError(f"{path} cannot be read ({error}).") from error
    if not isinstance(content, dict):
        raise BimbaError(f"{path} holds {type(content).__name__}; expected an object.")
    return content
