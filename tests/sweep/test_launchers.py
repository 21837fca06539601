"""Whichever launcher runs the jobs of a sweep, and whichever sweeper draws them, each cell is a process of its own.

With a small program that is built as train.py is, and for every cell writes down the processes that ran it.
"""

import json
import subprocess
import sys

import pytest
from hydra.errors import CompactHydraException
from hydra.utils import instantiate

from hydra_plugins.bimba_launcher.launcher import threads_of_environment

APP = """
import os, pathlib, time
import hydra
from hydra.core.hydra_config import HydraConfig
from bimba.runs import write_json
from bimba.sweep.job import is_job_of_sweep, run_as_process

SCRIPT = pathlib.Path(__file__).resolve()

@hydra.main(version_base="1.3", config_path="conf", config_name="app")
def main(cfg):
    if is_job_of_sweep():
        return run_as_process(SCRIPT)
    folder = pathlib.Path(HydraConfig.get().runtime.output_dir)
    with (folder / "processes.txt").open("a") as file:
        file.write(f"{os.getpid()} {cfg.trainer.devices}\\n")
    ended = "failed" if cfg.x == 3 else "finished"
    write_json(folder / "run.json", dict(
        status=ended, started=str(time.time()), overrides=list(HydraConfig.get().overrides.task), train_seconds=1.0,
        evaluation_seconds={}, objective=(cfg.x - 1.5) ** 2, error="three" if cfg.x == 3 else None,
    ))
    raise SystemExit(ended == "failed")

if __name__ == "__main__":
    main()
"""
CONFIG = """
defaults:
  - _self_
  - override hydra/launcher: bimba
x: 0
same: 0
resume: null
trainer: {accelerator: cpu, devices: 2}
hydra:
  searchpath: [file://CONF]
  sweep:
    dir: out
    subdir: ${cell_folder:${hydra.overrides.task},${hydra.job.config.override_dirname.exclude_keys}}
  callbacks:
    name_cells: {_target_: bimba.sweep.names.NameCells}
"""
CONF = __file__.rsplit("/tests/", 1)[0] + "/conf"


@pytest.fixture
def app(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/app.yaml").write_text(CONFIG.replace("CONF", CONF))

    def run(*arguments):
        command = [sys.executable, "app.py", "-m", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


def processes(tmp_path):
    """Cell -> how many processes ran it."""
    found = {path.parent.name: path.read_text().splitlines() for path in tmp_path.glob("out/*/processes.txt")}
    return {name: len(lines) for name, lines in sorted(found.items())}


def statuses(tmp_path):
    return {entry["cell"]: entry["status"] for entry in json.loads((tmp_path / "out/sweep.json").read_text())}


@pytest.mark.parametrize("launcher", ["bimba", "basic", "joblib", "submitit_local"])
def test_each_cell_is_one_process_and_a_failed_one_does_not_stop_the_others(launcher, app, tmp_path):
    done = app("x=1,3,2", "same=5", f"hydra/launcher={launcher}")
    assert done.returncode != 0
    assert "three" in done.stdout + done.stderr or "1 of 3 cells failed" in done.stderr
    assert processes(tmp_path) == {"x=1": 1, "x=2": 1, "x=3": 1}
    assert statuses(tmp_path) == {"x=1": "finished", "x=3": "failed", "x=2": "finished"}

    if launcher in ("bimba", "basic"):  # ours, and what all others call
        app("x=1,3,2", "same=5", f"hydra/launcher={launcher}")
        assert processes(tmp_path) == {"x=1": 1, "x=2": 1, "x=3": 2}


def test_what_slurm_is_asked_for(monkeypatch, tmp_path):
    """The script that submitit would hand to sbatch, as conf/hydra/launcher/slurm.yaml and the command line say."""
    import submitit
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    keys = ("hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=2")
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", [*keys, f"hydra.sweep.dir={tmp_path}"], return_hydra_config=True)
    scripts = []

    def submitted(executor, *_, **__):
        scripts.append(executor._executor._make_submission_file_text("command", "0"))
        assert executor._executor.max_num_timeout == 20
        return []

    monkeypatch.setattr("shutil.which", lambda name: name)  # srun, of which there is none here
    monkeypatch.setattr(submitit.AutoExecutor, "map_array", submitted)
    launcher = instantiate(config.hydra.launcher)
    launcher.setup(hydra_context=None, task_function=None, config=config)
    launcher.launch([["x=1"], ["x=2"]], 0)
    (script,) = scripts
    asked = dict(line.removeprefix("#SBATCH --").split("=", 1) for line in script.splitlines() if "#SBATCH" in line)
    assert asked["output"] == f"{tmp_path}/submitit/%j/%j_0_log.out"
    wanted = {"partition": "gpu", "nodes": "1", "ntasks-per-node": "1", "gpus-per-node": "2", "cpus-per-task": "8"}
    assert asked.items() >= {**wanted, "mem": "64GB", "time": "1440"}.items()


def test_the_parent_imports_no_torch_and_prints_a_table(app, tmp_path):
    program = tmp_path / "app.py"
    program.write_text(program.read_text() + "    import sys; print('torch' in sys.modules)\n")
    done = app("x=1", "same=5,6")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert "2 cells, " in done.stdout and "same=5: started" in done.stdout
    assert "│ same=6 │ finished │" in done.stdout


def test_optuna_draws_each_trial_once_and_is_told_the_objective(app, tmp_path):
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", "x=interval(0,2)")
    done = app(*search, "hydra.sweeper.sampler.seed=1")
    assert done.returncode == 0, done.stderr
    assert list(processes(tmp_path).values()) == [1] * 4
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("out/*/run.json")]
    best = min(run["objective"] for run in runs)
    assert f"best_value: {best}" in (tmp_path / "out/optimization_results.yaml").read_text()


def test_a_sweep_that_is_ended_names_the_cells_that_had_not_begun(app, tmp_path):
    """The first cell asks the sweep to stop, at its first attempt."""
    program = tmp_path / "app.py"
    first = "len((folder / 'processes.txt').read_text().splitlines()) == 1"
    asks = f"    if cfg.x == 1 and {first}: os.kill(os.getppid(), 2); time.sleep(0.5)\n"
    program.write_text(program.read_text().replace("    ended =", f"{asks}    ended =", 1))
    assert app("x=1,2", "same=5", "hydra.launcher.n_jobs=1").returncode == 130
    assert list(processes(tmp_path)) == ["x=1"]
    assert statuses(tmp_path)["x=2"] == "waiting"
    app("x=1,2", "same=5", "hydra.launcher.n_jobs=1")
    assert statuses(tmp_path)["x=2"] == "finished"


def test_two_cells_in_one_folder_are_refused(app):
    done = app("x=1,2", "hydra.sweep.subdir=same")
    assert done.returncode == 1
    assert "Two cells have the folder" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("key", ["n_jobs", "threads"])
def test_no_jobs_are_refused(key, app):
    done = app("x=1", f"hydra.launcher.{key}=0")
    assert done.returncode != 0
    assert f"hydra.launcher.{key} is 0; expected 1 or more, or null." in done.stderr


@pytest.mark.parametrize(("said", "threads"), [(None, 1), ("", 1), ("3", 3), ("4,2", 4)])
def test_threads_are_those_of_the_environment(said, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert threads_of_environment() == threads


def test_threads_that_are_no_number_are_refused(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    with pytest.raises(CompactHydraException, match="OMP_NUM_THREADS is 'many'; expected a number"):
        threads_of_environment()
