"""Imports point downwards only (DESIGN.md, section 2), and importing the package is cheap."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import bimba

ROOT = Path(__file__).resolve().parents[1]

FLOORS = [
    {"bimba.types", "bimba.files", "bimba.places"},
    {"bimba.ops", "bimba.versions"},
    {"bimba.model", "bimba.data"},
    {"bimba.checkpoint", "bimba.overrides", "bimba.processes", "bimba.runs"},
    {"bimba.training", "bimba.inference", "bimba.report", "bimba.sweep"},
    {"lmms_eval_plugin"},
    {"bimba.app"},
    {"train", "evaluate", "bimba.cli", "hydra_plugins"},  # evaluate.py runs the harness with the plugin's model
    {"bimba", "bimba.__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# The room "bimba": the front door, for users alone. Python runs bimba/__init__.py before any module of the package, so
# these two import nothing of ours but each other and bimba.types; what they open when it is asked for (lazy names,
# modules that follow transformers' own) they name in strings.
FRONT_DOOR = ("bimba", "bimba.registration")

# Modules that import each other all the same, and why that does no harm.
CIRCLES = {
    # By name, when the first configuration is made, and so after both were imported: AutoModel may ask for the class
    # that belongs to a BimbaConfig as soon as there is one.
    ("bimba.model.config", "bimba.model.bimba"),
}

OURS = re.compile(r"(bimba|lmms_eval_plugin|train|evaluate)(\.\w+)+")


def room_of(module: str) -> str | None:
    """The room a module of ours is in; None for other people's modules."""
    parts = bimba._HOMES.get(module.removeprefix("bimba."), module).split(".")  # from bimba import VideoQA
    for name in (".".join(parts[:2]), parts[0]):
        if name in FLOOR_OF:
            return name
    return None


def sources() -> list[Path]:
    return [
        *(path for path in ROOT.glob("bimba/**/*.py") if path.parent.name != "scripts"),  # links to the last two
        *ROOT.glob("lmms_eval_plugin/**/*.py"),
        *ROOT.glob("hydra_plugins/**/*.py"),
        ROOT / "train.py",
        ROOT / "evaluate.py",
    ]


def imported_modules(source: str, path: Path | str = "source") -> list[str]:
    """What is imported anywhere in a source, or named in a string, as for ``import_module``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they point"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and OURS.fullmatch(node.value):
            found.append(node.value)
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


def imports() -> dict[str, list[str]]:
    """Each module of ours, and what it imports."""
    return {module_name(path): imported_modules(path.read_text(), path) for path in sources()}


def in_(modules: Iterable[str], target: str) -> str | None:
    """The module that ``target`` is or is a name of, such as ``bimba.types`` for ``bimba.types.BimbaError``."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target or None


def test_every_import_points_down():
    wrong = [arrow for name, targets in imports().items() for arrow in arrows_up(name, targets)]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other():
    modules = imports()
    graph = {name: {m for target in targets if (m := in_(modules, target))} for name, targets in modules.items()}
    assert all(there in graph[here] for here, there in CIRCLES), "an exception that nobody needs any more"
    for here, there in CIRCLES:
        graph[here].remove(there)
    TopologicalSorter({name: targets - {name} for name, targets in graph.items()}).prepare()  # raises CycleError


def test_every_source_is_in_a_room():
    homeless = [name for name in imports() if room_of(name) in (None, "bimba") and name not in FRONT_DOOR]
    assert not homeless, f"add {homeless} to a floor"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("bimba.ops.interleave", "bimba.model.mamba"),
        ("bimba.model.processor", "bimba.data.transform"),
        ("bimba.inference.engine", "bimba.report.table"),
        ("bimba.data.dataset", "bimba.VideoQA"),
        ("bimba.data.dataset", "bimba.__version__"),
        ("bimba.types", "bimba.registration"),
    ],
)
def test_an_arrow_up_or_sideways_is_seen(source, target):
    assert arrows_up(source, [target])


@pytest.mark.parametrize(
    "source",
    [
        "import bimba.model",
        "def f():\n  from bimba import model",
        "import_module('bimba.model')",
        "X = {1: 'bimba.model'}",
    ],
)
def test_an_import_is_seen_wherever_and_however_it_is_written(source):
    assert imported_modules(source) == ["bimba.model"]


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
