"""``python train.py -m``: two processes per cell, one run per cell, by each launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "train.py"
COMMON = (
    "model.config.num_frames=2",
    "model.config.temporal_pooling=2",
    "trainer.max_steps=1",
    "data.prepare.num_clips={train: 4, test: 1}",
    "data.prepare.workers=1",
    "data.global_batch_size=2",
    "data.batch_size=1",
    "data.num_workers=0",
    "data.val_samples=0",
    "callbacks.needle_probe=null",
    "trainer=fsdp",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
)


def run(cwd, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "BIMBA_ROOT"}
    command = [sys.executable, str(SCRIPT), "-m", *arguments, *COMMON, "data.prepare.root=needle"]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def entries(sweep_dir):
    return {entry["cell"]: entry for entry in json.loads((sweep_dir / "sweep.json").read_text())}


def trainings(cell):
    """How often something was trained in the folder of a cell."""
    return (cell / "output.log").read_text().count("What is trained:")


COMPRESSORS = ("mamba", "pool", "conv")
# And one that fails: there is no compressor of this name.
SWEEP = ("--config-dir", "mine", f"model/compressor={','.join(COMPRESSORS)},missing", "hydra.sweep.dir=out")
CELLS = {**{f"compressor={name}": "finished" for name in COMPRESSORS}, "compressor=missing": "failed"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "mine/model/compressor").mkdir(parents=True)
    (folder / "mine/model/compressor/missing.yaml").write_text("name: missing\n")
    return folder


@pytest.fixture(scope="module")
def swept(folder):
    return run(folder, *SWEEP)


def test_every_cell_is_run_once_in_its_folder_by_two_processes(folder, swept):
    assert {path.name for path in folder.iterdir()} == {"mine", "out", "needle"}, "a cell began a sweep of its own"
    assert {path.name for path in (folder / "out").iterdir() if path.is_dir()} == set(CELLS)
    assert {name: entry["status"] for name, entry in entries(folder / "out").items()} == CELLS
    for name, status in CELLS.items():
        cell = folder / "out" / name
        assert json.loads((cell / "run.json").read_text())["status"] == status
        if status == "finished":
            assert trainings(cell) == 1
            assert (cell / "metrics.csv").read_text().count("\n") == 2  # of one step
            assert (cell / "train_ddp_process_1.log").is_file()


def test_a_failed_cell_is_in_the_exit_code(folder, swept):
    assert swept.returncode == 1
    assert "1 of 4 cells failed" in swept.stderr and "Traceback" not in swept.stderr
    assert "is no compressor" in entries(folder / "out")["compressor=missing"]["error"]


def test_again_is_what_is_missing(folder, swept):
    """One cell, as a killed process leaves it, goes on from its checkpoint; the others are not run again."""
    killed, *kept = (folder / "out" / f"compressor={name}" for name in COMPRESSORS)
    values = json.loads((killed / "run.json").read_text())
    (killed / "run.json").write_text(json.dumps({**values, "status": "running"}))
    done = run(folder, f"model/compressor={','.join(COMPRESSORS)}", "hydra.sweep.dir=out")
    assert done.returncode == 0, done.stderr
    assert [trainings(cell) for cell in (killed, *kept)] == [2, 1, 1]
    assert "resume=auto: going on from" in (killed / "output.log").read_text()
    assert {name: entry["status"] for name, entry in entries(folder / "out").items()} == CELLS
    again = json.loads((killed / "run.json").read_text())
    assert again["steps"] == 1 and again["metrics"] == values["metrics"]
