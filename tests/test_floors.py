"""Imports point downwards only (DESIGN.md, section 2), and importing the package is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bimba

ROOT = Path(__file__).resolve().parents[1]

FLOORS = [
    {"bimba.types", "bimba.registration"},
    {"bimba.ops"},
    {"bimba.model", "bimba.data"},
    {"bimba.checkpoint"},
    {"bimba.training", "bimba.inference", "bimba.report"},
    {"lmms_eval_plugin"},
    {"train", "evaluate", "bimba.cli"},  # evaluate.py runs the harness with the plugin's model
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str | None:
    """The room a module of ours is in; None for other people's modules and for ``bimba`` itself."""
    parts = bimba._HOMES.get(module.removeprefix("bimba."), module).split(".")  # from bimba import VideoQA
    for name in (".".join(parts[:2]), parts[0]):
        if name in FLOOR_OF:
            return name
    return None


def sources() -> list[Path]:
    return [
        *ROOT.glob("bimba/**/*.py"),
        *ROOT.glob("lmms_eval_plugin/**/*.py"),
        ROOT / "train.py",
        ROOT / "evaluate.py",
    ]


def imported_modules(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they point"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def arrows_up(source: str, targets: list[str]) -> list[str]:
    here = room_of(source)
    if here is None:
        return []
    wrong = []
    for target in targets:
        there = room_of(target)
        if there is None or there == here:
            continue
        if FLOOR_OF[there] >= FLOOR_OF[here]:
            wrong.append(f"{source} imports {target}")
    return wrong


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def test_every_import_points_down():
    wrong = [arrow for path in sources() for arrow in arrows_up(module_name(path), imported_modules(path))]
    assert not wrong, "\n".join(wrong)


def test_every_source_is_in_a_room():
    homeless = [module_name(p) for p in sources() if room_of(module_name(p)) is None and module_name(p) != "bimba"]
    assert not homeless, f"add {homeless} to a floor"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("bimba.ops.interleave", "bimba.model.mamba"),
        ("bimba.model.processor", "bimba.data.transform"),
        ("bimba.inference.engine", "bimba.report.table"),
        ("bimba.data.dataset", "bimba.VideoQA"),
    ],
)
def test_an_arrow_up_or_sideways_is_seen(source, target):
    assert arrows_up(source, [target])


@pytest.mark.parametrize("module", ["bimba", "bimba.types", "bimba.cli", "lmms_eval_plugin.manifest"])
def test_importing_does_not_import_torch(module):
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'lightning')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_compressor_needs_neither_transformers_nor_lightning():
    code = (
        "import sys; from bimba.model.compressor import MambaCompressor; import bimba.ops; "
        "sys.exit(any(m in sys.modules for m in ('transformers', 'lightning', 'hydra', 'peft')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
