"""run.json, and the evaluations that follow a training."""

import errno
import json
import subprocess
import sys

import pytest

from bimba.processes import peak_memory_mib
from bimba.runs import read_run
from bimba.training import run_record
from bimba.training.evaluations import check_evaluations, evaluate_trained, find_objective
from bimba.training.run_record import RunRecord
from bimba.training.throughput import Throughput
from bimba.types import BimbaError
from tests.training.fakes import NUM_FRAMES, FakeData, tiny_module, tiny_trainer

# Stands for evaluate.py: writes down what it was called with, and fails if it is told to.
SCRIPT = """
import json, os, pathlib, sys
values = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder = pathlib.Path(values["output_dir"].strip("'"))
print("loading")
if values.get("fail"):
    sys.exit("error: the benchmark is not there")
calls = folder / "calls.json"
calls.write_text(json.dumps([*(json.loads(calls.read_text()) if calls.is_file() else []), sys.argv[1:]]))
assert "WORLD_SIZE" not in os.environ
(folder / "summary.json").write_text(json.dumps({"tasks": {"retrieval": {"accuracy": 0.25}}}))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "evaluate.py"
    path.write_text(SCRIPT)
    return path


def fit(run_dir, steps=4, resume=None, evaluate=None, script=None):
    """A run of which run.json is kept; its training, and its evaluations if a script is given."""
    record = RunRecord(run_dir, ["seed=1"], evaluate)
    module = tiny_module()
    trainer = tiny_trainer(run_dir, steps, [Throughput(2), record], resume)
    with record:
        trainer.fit(module, FakeData(module.processor), ckpt_path=resume, weights_only=True)
        record.trained(trainer)
        trainer.save_checkpoint(run_dir / "state.ckpt")
        if script is not None:
            evaluate_trained(record, script)
    return record, module, trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    return run_dir, *fit(run_dir)


def test_a_run_is_recorded(trained):
    run_dir, _, module, trainer = trained
    run = read_run(run_dir)
    throughput = trainer.callbacks[0]
    grid = module.model.config.patch_grid
    assert run["status"] == "finished" and run["error"] is None
    assert run["overrides"] == ["seed=1"] and run["command"][0] == sys.executable
    assert run["steps"] == 4 and run["train_seconds"] > 0
    assert run["code_version"]["packages"]["torch"]
    assert 50 < run["peak_memory_mib"] < 100_000 and run["gpu_peak_memory_mib"] is None
    assert len(throughput.patch_token_rates) == 2
    low, high = sorted(throughput.patch_token_rates)
    assert low <= run["tokens_per_second"] <= high
    trained_elements = sum(p.numel() for p in module.model.parameters() if p.requires_grad)
    assert run["parameters"] == {"compressor": 0, "trained": trained_elements}
    frames = module.model.config.num_frames
    assert run["compression"] == {
        "frames": frames,
        "patch_tokens": frames * grid**2,
        "visual_tokens": frames * ((grid + 1) // 2) ** 2,
    }
    assert module.processor.newline_position != "no_token" and NUM_FRAMES
    assert run["metrics"]["train/loss"] > 0


def test_a_resumed_run_counts_the_seconds_before(trained, tmp_path):
    run_dir, before, *_ = trained
    record, _, trainer = fit(tmp_path, steps=6, resume=run_dir / "state.ckpt")
    assert record.values["train_seconds"] > before.values["train_seconds"]
    assert len(trainer.callbacks[0].patch_token_rates) == 3


def test_a_run_resumed_with_other_code_names_what_trained_it_before(trained, tmp_path, monkeypatch):
    run_dir, before, *_ = trained
    assert read_run(run_dir)["earlier_code"] == []
    same, _, _ = fit(tmp_path / "same", steps=4, resume=run_dir / "state.ckpt")  # nothing left to train
    assert same.values["earlier_code"] == []
    code = before.values["code_version"]
    monkeypatch.setattr(run_record, "code_version", lambda: {**code, "git": {"commit": "b" * 40, "dirty": False}})
    fit(tmp_path / "other", steps=4, resume=run_dir / "state.ckpt")
    assert read_run(tmp_path / "other")["earlier_code"] == [{"bimba": code["bimba"], "git": code["git"]}]
    monkeypatch.undo()
    fit(tmp_path / "again", steps=6, resume=tmp_path / "other" / "state.ckpt")
    assert read_run(tmp_path / "again")["earlier_code"] == [
        {"bimba": code["bimba"], "git": {"commit": "b" * 40, "dirty": False}}
    ]


def test_a_run_that_fails_says_why(tmp_path):
    record = RunRecord(tmp_path, [])
    with record:
        assert read_run(tmp_path)["status"] == "running"
        error = RuntimeError("outer")
        error.__cause__ = BimbaError("nothing is there")
    record.__exit__(RuntimeError, error, None)
    assert read_run(tmp_path)["status"] == "failed"
    assert read_run(tmp_path)["error"] == "nothing is there"


def test_a_full_disk_does_not_hide_what_ended_a_run(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    record = RunRecord(tmp_path, [])
    record.__enter__()
    monkeypatch.setattr(run_record, "write_json", full)
    record.__exit__(ValueError, ValueError("boom"), None)  # and raises nothing itself
    assert "No space left on device" in caplog.text
    monkeypatch.undo()
    with RunRecord(tmp_path, []):  # and the folder is free
        pass
    assert read_run(tmp_path)["status"] == "finished"


def test_what_is_no_record_is_none(tmp_path):
    assert read_run(tmp_path) is None
    (tmp_path / "run.json").write_text("{")
    assert read_run(tmp_path) is None


def test_memory_is_this_process_and_not_its_parent():
    code = "from bimba.processes import peak_memory_mib; print(peak_memory_mib())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < peak_memory_mib() / 3  # torch is in this one


def calls(run_dir, name="test"):
    return json.loads((run_dir / f"evaluation/{name}/calls.json").read_text())


def test_evaluations_run_once_and_give_the_objective(tmp_path, script, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    run_dir = tmp_path / "a run, odd"
    evaluate = {"test": ["benchmark=needle"], "frames_16": ["num_frames=16"]}
    for _ in range(2):
        with RunRecord(run_dir, [], evaluate) as record:
            evaluate_trained(record, script)
            record.write(objective=find_objective("evaluation/test/retrieval", record))
    checkpoint, output = f"checkpoint='{run_dir}/checkpoint'", f"output_dir='{run_dir}/evaluation/test'"
    assert calls(run_dir) == [["benchmark=needle", checkpoint, output]]  # once
    assert calls(run_dir, "frames_16")[0][0] == "num_frames=16"
    run = read_run(run_dir)
    assert run["objective"] == 0.25 and set(run["evaluation_seconds"]) == set(evaluate)


@pytest.mark.parametrize("change", ["steps", "arguments"])
def test_other_weights_and_other_arguments_are_evaluated_anew(change, tmp_path, script):
    for number in range(2):
        arguments = [f"num_frames={number}"] if change == "arguments" else []
        with RunRecord(tmp_path, [], {"test": arguments}) as record:
            record.write(steps=number if change == "steps" else 0)
            evaluate_trained(record, script)
    assert len(calls(tmp_path)) == 2


def test_weights_that_were_trained_anew_in_the_same_steps_are_evaluated_anew(tmp_path, script):
    for resume, evaluated in ((None, 1), (None, 2), (tmp_path / "state.ckpt", 2)):
        fit(tmp_path, steps=1, resume=resume, evaluate={"test": []}, script=script)
        assert len(calls(tmp_path)) == evaluated


def test_a_folder_has_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(run_record, "LOCK_WAIT_S", 0.1)
    for seed in (1, 2):  # one after the other
        with RunRecord(tmp_path, [f"seed={seed}"]):
            pass
    holder = "import sys, pathlib; from bimba.runs import lock_of_run; lock = lock_of_run(pathlib.Path(sys.argv[1]))\n"
    holder += "lock.acquire(timeout=0); print('held', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], text=True, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BimbaError, match="in use by another process"), RunRecord(tmp_path, ["seed=3"]):
            pass
        assert read_run(tmp_path)["overrides"] == ["seed=2"]
        other.kill()
    with RunRecord(tmp_path, ["seed=3"]):  # killed, and the lock is free
        assert read_run(tmp_path)["overrides"] == ["seed=3"]


def test_a_failed_evaluation_is_a_failed_run_with_its_last_words(tmp_path, script):
    with pytest.raises(BimbaError), RunRecord(tmp_path, [], {"test": ["fail=1"]}) as record:
        evaluate_trained(record, script)
    run = read_run(tmp_path)
    assert run["status"] == "failed" and run["evaluation_seconds"] == {}
    assert run["error"].startswith("The evaluation test failed: error: the benchmark is not there")
    assert (tmp_path / "evaluation/test/output.log").read_text().startswith("loading")


@pytest.mark.parametrize(
    ("evaluate", "saves", "message"),
    [
        ({"a/b": []}, True, "a/b"),
        ({"..": []}, True, "is to be a folder's"),
        ({"test": "benchmark=needle"}, True, "expected a list of arguments"),
        ({"test": []}, False, "leave it on"),
        ("test", True, "or null for none"),
    ],
)
def test_bad_evaluations_are_refused_before_training(evaluate, saves, message):
    with pytest.raises(BimbaError, match=message):
        check_evaluations(evaluate, saves)


def test_null_turns_an_experiments_evaluations_off():
    assert check_evaluations(None, False) == {}


def test_an_objective_that_is_not_there_is_answered_with_those_that_are(trained):
    assert find_objective(None, trained[1]) is None
    assert find_objective("train/loss", trained[1]) > 0
    with pytest.raises(BimbaError, match="choose one of .*train/loss"):
        find_objective("val/los", trained[1])
