"""What can be known of a command without running it: that its program takes it as it is written."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bimba.cli import build_parser
from tests.docs.fences import ROOT, Command, command_in
from tests.docs.shell import Shell

SCRIPTS = ("train.py", "evaluate.py")


def check(command: Command, shell: Shell) -> None:
    """Fails for a command that its program would refuse."""
    program = command.words[0]
    assert program in CHECKS, f"{command.where}: nothing in tests/docs/checks.py knows {program!r}"
    CHECKS[program](command, shell)


def _python(command: Command, shell: Shell) -> None:
    """train.py and evaluate.py compose their configuration, as one of the runs of a sweep; others are there."""
    words = list(command.words)
    if words[1:3] == ["-m", "pytest"]:
        return
    assert (ROOT / words[1]).is_file(), f"{command.where}: there is no {words[1]}"
    if words[1] in SCRIPTS:
        sweep = "-m" in words
        words = [_first_value(word) if sweep else word for word in words if word != "-m"]
        # Launchers of packages that are not installed everywhere: their own keys go with them.
        if any(word.startswith("hydra/launcher=") for word in words):
            words = [word for word in words if not word.lstrip("+").startswith(("hydra/launcher", "hydra.launcher"))]
        code, output = shell.run(replace(command, words=(*words, *(() if "--cfg" in words else ("--cfg", "job")))))
        assert code == 0, f"{command.where}: {shlex.join(words)}\n{output[-2000:]}"
        assert "checkpoint:" in output


def _first_value(word: str) -> str:
    """``seed=1,2,3`` -> ``seed=1``; a list in brackets is one value."""
    key, equals, value = word.partition("=")
    return word if re.search(r"[\[{'\"]", value) else key + equals + value.split(",")[0]


def _script_in(command: Command, shell: Shell) -> None:
    """A launcher before one of our scripts."""
    names = [word for word in command.words if word in SCRIPTS]
    assert names, f"{command.where}: starts none of {', '.join(SCRIPTS)}"
    _python(replace(command, words=("python", *command.words[command.words.index(names[0]) :])), shell)


def _sbatch(command: Command, shell: Shell) -> None:
    script, *arguments = command.words[1:]
    assert "train.py" in (ROOT / script).read_text()
    _python(replace(command, words=("python", "train.py", *arguments)), shell)


def _make(command: Command, shell: Shell) -> None:
    """There are such targets, and the commands of theirs that are ours are as they should be."""
    done = subprocess.run(["make", "-n", "VENV=.venv", *command.words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command.where}: {done.stderr}"
    for line in done.stdout.splitlines():
        if line.startswith(".venv/bin/python train.py") or line.startswith(".venv/bin/python evaluate.py"):
            part = command_in(line.removeprefix(".venv/bin/"), command.where)
            assert part is not None
            _python(part, shell)


def _bimba(command: Command, shell: Shell) -> None:
    try:
        build_parser().parse_args(command.words[1:])
        code: object = 0
    except SystemExit as end:
        code = end.code
    assert code == 0, f"{command.where}: bimba does not take {shlex.join(command.words)}"


def _lmms_eval(command: Command, shell: Shell) -> None:
    """The tasks are ours or the harness's; its own parser takes the rest."""
    from lmms_eval.__main__ import parse_eval_args

    arguments, sys.argv = sys.argv, list(command.words)
    try:
        parsed = parse_eval_args()[1]
    finally:
        sys.argv = arguments
    assert parsed.model == "bimba"
    assert set(parsed.tasks.split(",")) <= task_names(), f"{command.where}: {parsed.tasks}"


@functools.cache
def task_names() -> frozenset[str]:
    """Of our tasks and groups, and of the harness's."""
    import lmms_eval

    found = set()
    for root in (ROOT / "lmms_eval_plugin/tasks", *(Path(path) / "tasks" for path in lmms_eval.__path__)):
        for path in root.glob("*/*.yaml"):
            if match := re.search(r"^(?:task|group): *[\"']?([\w-]+)", path.read_text(), re.M):
                found.add(match[1])
    return frozenset(found)


def _pip(command: Command, shell: Shell) -> None:
    """The extras that are asked for exist."""
    assert command.words[1] == "install", f"{command.where}: pip {command.words[1]}"
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", section, re.M)
    for word in command.words[2:]:
        if match := re.fullmatch(r"(?:bimba|\.)\[([\w,]+)\]", word):
            assert set(match[1].split(",")) <= set(extras), f"{command.where}: {word}"


def _not_ours(command: Command, shell: Shell) -> None:
    """Somebody else's program: what it takes is not known here."""


CHECKS: dict[str, Callable[[Command, Shell], None]] = {
    "python": _python,
    "torchrun": _script_in,
    "accelerate": _script_in,
    "sbatch": _sbatch,
    "make": _make,
    "bimba": _bimba,
    "lmms-eval": _lmms_eval,
    "pip": _pip,
    "git": _not_ours,
    "cd": _not_ours,
    "mkdocs": _not_ours,
    "tensorboard": _not_ours,
    "trackio": _not_ours,
    "wandb": _not_ours,
}
