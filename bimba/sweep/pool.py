"""Runs the cells of a sweep, so many at a time, and stops them in good order when the sweep is told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from bimba.processes import environment_of_a_fresh_process
from bimba.runs import git_state, read_run
from bimba.sweep.cell import OUTPUT, Cell, Outcome
from bimba.types import BimbaError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 0.1
Listener = Callable[[Cell, "Outcome | None"], None]  # of each cell's start (None), and of how it ended


@dataclass
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    slot: int
    began_s: float
    started_before: str  # of the attempt before


class _Stop:
    """Signals that ask the sweep to stop: the first one asks the running cells, the second one kills them.

    Each cell is a session of its own, so that a terminal's Ctrl-C reaches its processes once, by way of this one.
    """

    def __init__(self, running: list[_Running]):
        self.running = running
        self.received: int = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        # SIGTERM: a run then ends after its optimizer step (bimba.training.signals); before that, at once.
        how = signal.SIGKILL if self.received else signal.SIGTERM
        self.received = self.received or signum
        again = "killed" if how == signal.SIGKILL else "asked to end after its optimizer step (again: kills them)"
        os.write(2, f"\n{signal.Signals(signum).name}: each running cell is {again}.\n".encode())
        for one in list(self.running):
            _signal(one.process, how)


def _signal(process: subprocess.Popen[bytes], how: int) -> None:
    """To all processes of a cell."""
    if process.poll() is None:
        os.killpg(process.pid, how)


@contextmanager
def _listening(stop: _Stop) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where only whoever runs this thread can stop it
        yield
        return
    before: dict[int, Any] = {signum: signal.signal(signum, stop) for signum in _SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def _ending_with_us(running: list[_Running]) -> Iterator[None]:
    """Cells are sessions of their own: after an error, of a full disk say, they would go on and nobody would know."""
    try:
        yield
    except BaseException:
        for one in running:
            _signal(one.process, signal.SIGTERM)
        raise


def run_cells(
    cells: Sequence[Cell], jobs: int, listen: Listener, environments: Sequence[Mapping[str, str]] | None = None
) -> list[Outcome]:
    """Runs each cell as a process, ``jobs`` at a time; those that have finished already are left as they are.

    Args:
        listen: is told of every start and end, one at a time.
        environments: what each of the ``jobs`` places has besides this process's environment.

    Returns:
        how each ended, in their order.

    Raises:
        SystemExit: the sweep was asked to stop; all cells that ran have ended by then.
        OSError: a cell could not be started, or ``listen`` raised it; those that ran were asked to end.
    """
    outcomes: dict[int, Outcome] = {}
    waiting, slots = list(range(len(cells))), list(range(jobs))
    running: list[_Running] = []
    numbers: dict[int, int] = {}  # process -> cell
    stop = _Stop(running)

    def note(number: int, outcome: Outcome) -> None:
        outcomes[number] = outcome
        listen(cells[number], outcome)

    with _listening(stop), _ending_with_us(running):
        while running or (waiting and not stop.received):
            while waiting and slots and not stop.received:
                number = waiting.pop(0)
                if (done := _earlier(cells[number])) is not None:
                    note(number, done)
                    continue
                listen(cells[number], None)
                slot = slots.pop(0)
                running.append(_start(cells[number], slot, environments[slot] if environments else {}))
                numbers[running[-1].process.pid] = number
                if stop.received:  # while it was started
                    _signal(running[-1].process, signal.SIGTERM)
            time.sleep(_POLL_S)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                slots.append(one.slot)
                seconds = round(time.monotonic() - one.began_s, 3)
                outcome = one.cell.ended(one.process.returncode, seconds, one.started_before)
                if stop.received and outcome.status == "failed":
                    outcome = replace(outcome, status="interrupted")
                note(numbers[one.process.pid], outcome)
    if stop.received:
        raise SystemExit(128 + stop.received)
    return [outcomes[number] for number in range(len(cells))]


def _start(cell: Cell, slot: int, environment: Mapping[str, str]) -> _Running:
    cell.folder.mkdir(parents=True, exist_ok=True)
    started_before = (read_run(cell.folder) or {}).get("started", "")
    with (cell.folder / OUTPUT).open("ab") as file:
        process = subprocess.Popen(
            cell.command(),
            cwd=cell.cwd,
            env={**environment_of_a_fresh_process(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _Running(cell, process, slot, time.monotonic(), started_before)


def _earlier(cell: Cell) -> Outcome | None:
    """How it ended, where there is nothing to run: it has finished earlier, or cannot be run in its folder."""
    try:
        done = cell.earlier()
    except BimbaError as error:
        return Outcome("failed", 0.0, str(error))
    return None if done is None else replace(done, note="had finished already" + _of_other_code(cell))


def _of_other_code(cell: Cell) -> str:
    then = ((read_run(cell.folder) or {}).get("code_version") or {}).get("git")
    now = git_state(Path(__file__).parent)
    if then is None or now is None or then["commit"] == now["commit"]:
        return ""
    return f", with the code of {then['commit'][:8]}, where this is {now['commit'][:8]}"
