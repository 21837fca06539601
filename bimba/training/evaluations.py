"""Evaluations that follow a training, each as a process of its own: ``<run_dir>/evaluation/<name>/``."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from bimba.processes import environment_of_a_fresh_process, last_line, quoted
from bimba.training.run_record import RunRecord
from bimba.types import BimbaError

log = logging.getLogger(__name__)

FOLDER = "evaluation"
_NAME = re.compile(r"[\w.,=-]+")


def check_evaluations(evaluate: Any, saves_checkpoint: bool) -> dict[str, list[str]]:
    """The key ``evaluate`` as name -> arguments; null is none, for an experiment that has some.

    Raises:
        BimbaError: no mapping, a name that is no folder's, arguments that are no list, or no checkpoint to evaluate.
    """
    if evaluate is None:
        return {}
    if not isinstance(evaluate, Mapping):
        raise BimbaError(
            f"evaluate is {evaluate!r}; expected name: [arguments of evaluate.py], such as "
            "{test: [benchmark=needle]}, or null for none."
        )
    if evaluate and not saves_checkpoint:
        raise BimbaError("evaluate needs the checkpoint that callbacks.save writes; leave it on, or set evaluate=null.")
    for name, arguments in evaluate.items():
        if not _NAME.fullmatch(str(name)) or set(str(name)) == {"."}:
            raise BimbaError(f"evaluate has the name {name!r}, which is to be a folder's; use letters, digits, _ . -")
        if isinstance(arguments, str) or not isinstance(arguments, Sequence):
            raise BimbaError(
                f"evaluate.{name} is {arguments!r}; expected a list of arguments of evaluate.py, such as "
                "[benchmark=needle, num_frames=16]."
            )
    return {str(name): [str(argument) for argument in arguments] for name, arguments in evaluate.items()}


def evaluate_trained(record: RunRecord, script: Path) -> None:
    """Runs ``record.evaluate`` on the checkpoint that the run has left, one after the other.

    One that an earlier process of this run has ended with the same weights and arguments is not run again.

    Args:
        record: notes how long each took.
        script: ``evaluate.py``.

    Raises:
        BimbaError: an evaluation failed. Those after it have not begun.
    """
    run_dir = record.path.parent
    for name, arguments in record.evaluate.items():
        folder = run_dir / FOLDER / name
        seconds = _already(record, name, folder)
        if seconds is None:
            seconds = _evaluate(run_dir / "checkpoint", folder, arguments, script)
            log.info("evaluation %s: %.0f s, %s", name, seconds, folder / "report.html")
        record.write(evaluation_seconds={**record.values["evaluation_seconds"], name: seconds})


def _already(record: RunRecord, name: str, folder: Path) -> float | None:
    """How long it took, if it is there, and is of the weights as they are: this process has trained nothing."""
    earlier = record.earlier
    if record.has_stepped or earlier is None or not (folder / "summary.json").is_file():
        return None
    if earlier.get("steps") != record.values["steps"]:
        return None
    if earlier.get("evaluate", {}).get(name) != record.evaluate[name]:
        return None
    found: float | None = earlier.get("evaluation_seconds", {}).get(name)
    return found


def _evaluate(checkpoint: Path, folder: Path, arguments: Sequence[str], script: Path) -> float:
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "output.log"
    own = [f"checkpoint={quoted(checkpoint)}", f"output_dir={quoted(folder)}"]
    began_s = perf_counter()
    with output.open("wb") as file:
        done = subprocess.run(
            [sys.executable, str(script), *arguments, *own],
            env=environment_of_a_fresh_process(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if done.returncode != 0:
        said = last_line(output) or f"it ended with {done.returncode}"
        raise BimbaError(f"The evaluation {folder.name} failed: {said} ({output}). The checkpoint is kept.")
    return round(perf_counter() - began_s, 3)


def find_objective(name: str | None, record: RunRecord) -> float | None:
    """The number that a sweeper is told of a run.

    Args:
        name: a metric that Lightning logged, whose last value is meant, such as "val/loss"; or "evaluation/NAME/TASK",
            the accuracy in that task; None: nothing.

    Raises:
        BimbaError: there is no such number.
    """
    if name is None:
        return None
    known: dict[str, float] = dict(record.values["metrics"])
    for evaluation in record.evaluate:
        path = record.path.parent / FOLDER / evaluation / "summary.json"
        tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
        known |= {f"{FOLDER}/{evaluation}/{task}": float(score["accuracy"]) for task, score in tasks.items()}
    if name not in known:
        raise BimbaError(f"objective={name} is nothing that this run has; choose one of {', '.join(sorted(known))}.")
    return known[name]
