"""Cells as processes, with a small program in the place of train.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bimba.sweep import ledger
from bimba.sweep.cell import Cell
from bimba.sweep.pool import run_cells
from bimba.types import BimbaError

# Ends as its overrides say, and keeps run.json as train.py does.
SCRIPT = """
import json, os, pathlib, sys, time
values = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
folder = pathlib.Path(values["hydra.run.dir"].strip("'"))
attempts = folder / "attempts.txt"
with attempts.open("a") as file:
    file.write("x")
number = len(attempts.read_text())
overrides = [a for a in sys.argv[1:] if a.startswith(("how", "resume"))]
run = dict(started=str(number), overrides=overrides, train_seconds=2.0, evaluation_seconds={"test": 1.0},
           objective=0.5, error=None, code_version={"git": {"commit": "0" * 40, "dirty": False}})
def write(status, error=None):
    (folder / "run.json").write_text(json.dumps({**run, "status": status, "error": error}))
print("WORLD_SIZE" in os.environ, os.environ.get("OMP_NUM_THREADS"))
how = values["how"]
if how == "unknown_key":
    print("There is no key")
    print("Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.")
    sys.exit(1)
write("running")
if how == "killed" and number == 1:
    os.kill(os.getpid(), 9)
if how == "fails":
    write("failed", "first line\\nsecond line")
    sys.exit(1)
if how == "waits":
    time.sleep(60)
write("finished")
"""


@pytest.fixture
def make(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    def make_cell(how, name=None):
        return Cell(script, tmp_path / "sweep" / (name or f"how={how}"), (f"how={how}",), (), tmp_path)

    return make_cell


def sweep(cells, jobs=2, environments=None):
    told = []
    outcomes = run_cells(cells, jobs, lambda cell, outcome: told.append((cell, outcome)), environments)
    for cell, outcome in told:
        ledger.note(cell.folder.parent, cell, outcome)
    return outcomes, [cell.name for cell, outcome in told if outcome is None]


def attempts(cell):
    return len((cell.folder / "attempts.txt").read_text())


def test_failed_cells_do_not_stop_a_sweep_and_a_second_one_only_runs_what_is_missing(make, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    cells = [make(how) for how in ("fails", "unknown_key", "ends", "killed")]
    outcomes, started = sweep(cells, environments=[{"OMP_NUM_THREADS": "3"}] * 2)
    assert started == [cell.name for cell in cells]
    assert [outcome.status for outcome in outcomes] == ["failed", "failed", "finished", "failed"]
    assert [o.error for o in outcomes] == ["first line\nsecond line", "There is no key", None, "killed by SIGKILL"]
    assert outcomes[2].objective == 0.5
    assert (cells[2].folder / "output.log").read_text() == "False 3\n"

    seconds = outcomes[2].seconds
    outcomes, started = sweep(cells)
    assert started == ["how=fails", "how=unknown_key", "how=killed"]
    assert [outcome.status for outcome in outcomes] == ["failed", "failed", "finished", "finished"]
    assert [attempts(cell) for cell in cells] == [2, 2, 1, 2]
    assert outcomes[2].note.startswith("had finished already, with the code of 00000000, where this is ")
    assert outcomes[2].seconds == 3.0
    entries = json.loads((cells[0].folder.parent / "sweep.json").read_text())
    assert [(entry["cell"], entry["status"]) for entry in entries] == [
        (cell.name, outcome.status) for cell, outcome in zip(cells, outcomes)
    ]
    assert entries[0]["overrides"] == ["how=fails"] and entries[0]["error"] == "first line\nsecond line"
    assert entries[2]["seconds"] == seconds


def test_a_cell_whose_turn_has_not_come_is_waiting_and_one_that_has_ended_stays_so(make):
    cells = [make("ends"), make("fails")]
    sweep(cells[:1])
    ledger.plan(cells[0].folder.parent, cells)
    entries = json.loads((cells[0].folder.parent / "sweep.json").read_text())
    assert [(one["cell"], one["status"]) for one in entries] == [("how=ends", "finished"), ("how=fails", "waiting")]


def test_cells_that_were_never_begun_are_not_waited_for_when_others_are_swept(make):
    ended, never, other = make("ends"), make("fails"), make("sleeps")
    sweep_dir = ended.folder.parent
    ledger.plan(sweep_dir, [ended, never])
    sweep([ended])
    ledger.plan(sweep_dir, [other])
    entries = json.loads((sweep_dir / "sweep.json").read_text())
    assert [(one["cell"], one["status"]) for one in entries] == [(ended.name, "finished"), (other.name, "waiting")]


def test_a_folder_with_another_run_is_left_alone(make):
    sweep([make("ends", "cell")])
    cell = make("fails", "cell")
    with pytest.raises(BimbaError, match="it had how=ends, this cell has how=fails"):
        cell.earlier()
    (outcome,), started = sweep([cell])
    assert not started and outcome.status == "failed" and "another hydra.sweep.dir" in outcome.error
    assert attempts(cell) == 1


def test_the_command_goes_on_where_the_cell_was(make):
    cell = make("ends", "it's=a,cell")
    command = cell.command()
    assert command[0] == sys.executable and command[2] == "how=ends"
    assert command[-1] == "resume=auto" and command[-2].endswith("it\\'s=a,cell'")
    other = Cell(cell.script, cell.folder, ("resume=elsewhere",), (), cell.cwd)
    assert other.command()[-1].startswith("hydra.run.dir")


def test_what_is_the_sweeps_does_not_go_to_its_cells(tmp_path):
    hydra = {
        "overrides": {
            "task": ["seed=1"],
            "hydra": ["hydra.mode=MULTIRUN", "hydra/launcher=joblib", "hydra.sweep.dir=x", "+hydra.verbose=true"],
        },
        "job": {"config_name": "train"},
        "runtime": {
            "cwd": str(tmp_path),
            "config_sources": [
                {"provider": "main", "path": "conf"},
                {"provider": "command-line", "path": "mine"},
            ],
        },
    }
    cell = Cell.from_config(Path("train.py"), OmegaConf.create({"hydra": hydra}), tmp_path)
    assert cell.overrides == ("seed=1",)
    assert cell.more == ("--config-name", "train", "--config-dir", "mine", "+hydra.verbose=true")


def test_an_error_of_the_sweep_itself_leaves_no_cell_behind(make):
    waits, other = make("waits"), make("ends")

    def listen(cell, outcome):
        if cell is other:  # by then the first one runs
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_cells([waits, other], 2, listen)
    deadline = time.monotonic() + 30
    while (left := _processes_with(str(waits.folder))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _processes_with(argument):
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "cmdline").read_text()
            except OSError:
                continue
            found += [folder.name] if argument in words else []
    return found


def test_a_signal_ends_all_cells(make, tmp_path):
    """In a process of its own, as a user's Ctrl-C finds it."""
    cell = make("waits")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, pathlib\n"
        "from bimba.sweep.cell import Cell\n"
        "from bimba.sweep.pool import run_cells\n"
        f"folder, script = pathlib.Path({str(cell.folder)!r}), pathlib.Path({str(cell.script)!r})\n"
        "cells = [Cell(script, folder / str(i), ('how=waits',), (), folder.parent.parent) for i in range(3)]\n"
        "run_cells(cells, 2, lambda cell, outcome: print(cell.name, outcome and outcome.status, flush=True))\n"
    )
    sweep_process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    waiting = [cell.folder / str(number) / "run.json" for number in range(2)]
    deadline = time.monotonic() + 60
    while not all(path.is_file() for path in waiting) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(sweep_process.pid, signal.SIGINT)
    said, _ = sweep_process.communicate(timeout=60)
    lines = said.splitlines()
    assert lines[:2] == ["0 None", "1 None"]
    assert sorted(lines[2:]) == ["0 interrupted", "1 interrupted"]
    assert sweep_process.returncode == 128 + signal.SIGINT
