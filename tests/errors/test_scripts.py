"""``python train.py``, ``python evaluate.py`` and ``lmms-eval --model bimba``."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from bimba.overrides import check_command_line
from bimba.types import BimbaError
from tests.conf.conftest import *  # noqa: F403  # train_config, train_script, evaluate_script
from tests.errors.case import USAGE, Case, check_said
from tests.errors.workshop import ROOT

TRAIN = [
    Case("a_key", ["trainer.max_stepps=3"], ["There is no key trainer.max_stepps; did you mean trainer.max_steps?"]),
    Case("a_group", ["modle=bimba_tiny"], ["There is no key modle; did you mean model?"]),
    Case("a_choice", ["model=bimba_tinny"], ["There is no model=bimba_tinny; did you mean model=bimba_tiny?"]),
    Case(
        "a_compressor",
        ["model/compressor=mambo"],
        ["did you mean model/compressor=mamba?", "Expected one of attention"],
    ),
    Case(
        "an_experiment", ["experiment=bimba7b"], ["There is no experiment=bimba7b; did you mean experiment=bimba_7b?"]
    ),
    Case("a_logger", ["logger=wanb"], ["There is no logger=wanb; did you mean logger=wandb?", "csv, tensorboard"]),
    Case("no_value", ["trainer.max_steps"], ["'trainer.max_steps' cannot be read", "Expected KEY=VALUE"]),
    Case(
        "a_bracket", ["optimizer.betas=[0.9"], ["'optimizer.betas=[0.9' cannot be read", "in quotes if the value has"]
    ),
    Case("a_flag", ["--max-steps=3"], ["--max-steps=3: no such option", "Keys are given as KEY=VALUE"]),
    Case("keys_in_two_places", ["seed=1", "-m", "trainer=cpu"], ["trainer=cpu: not understood there", "together"]),
    Case("a_word_as_seed", ["seed=abc"], ["seed is 'abc'; expected a number, such as the default, 0"]),
    Case("a_word_as_rate", ["optimizer.lr=fast"], ["optimizer.lr is 'fast'; expected a number"]),
    Case("a_word_as_switch", ["save_frozen=maybe"], ["save_frozen is 'maybe'; expected true or false"]),
    Case("a_word_as_list", ["model.frozen=projector"], ["model.frozen is 'projector'; expected a list"]),
    Case("a_sweep_without_m", ["seed=1,2"], ["Ambiguous value for argument 'seed=1,2'", "add --multirun"]),
    Case(
        "a_key_of_one_compressor_in_a_sweep",
        ["-m", "model/compressor=mamba,pool", "model.compressor.question_conditioned=true,false"],
        ["with model/compressor=pool: There is no key model.compressor.question_conditioned; those that have it: "],
    ),
    Case(
        "an_option_in_a_sweep",
        ["-m", "seed=1,2", "model/compressor=mamba,pol"],
        ["with model/compressor=pol: There is no model/compressor=pol; did you mean model/compressor=pool?"],
    ),
    Case("no_group", ["logger=null"], ["Config group override must be a string or a list"]),
    Case("no_group_in_a_sweep", ["-m", "logger=csv,null"], ["with logger=null: Config group override must be"]),
    Case("two_at_once", ["seed=abc", "save_frozen=x"], ["seed is 'abc'", "save_frozen is 'x'"]),
]
EVALUATE = [
    Case("a_key", ["chekpoint=x"], ["There is no key chekpoint; did you mean checkpoint?"]),
    Case("a_benchmark", ["benchmark=videome"], ["There is no benchmark=videome; did you mean benchmark=videomme?"]),
    Case("a_word_as_switch", ["batch_questions=x"], ["batch_questions is 'x'; expected true or false"]),
]


@pytest.mark.parametrize(
    ("script", "case"),
    [*(("train", case) for case in TRAIN), *(("evaluate", case) for case in EVALUATE)],
    ids=lambda value: str(value),
)
def test_the_command_line_is_looked_at_before_anything_starts(script, case, monkeypatch, capsys):
    monkeypatch.setenv("BIMBA_ROOT", str(ROOT))
    with pytest.raises(SystemExit) as stop:
        check_command_line(ROOT / "conf", script, case.words)
    assert stop.value.code == USAGE
    check_said(capsys.readouterr().err, case.says)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--cfg", "job", "-p", "trainer", "seed=3"],
        ["-m", "seed=1,2", "model/compressor=mamba,pool", "optimizer.lr=interval(0,1)", "trainer.max_steps=range(1,3)"],
        ["-m", "model/compressor=glob(*)", "hydra/sweeper=lr_search"],
        ["trainer.devices=auto", "trainer.val_check_interval=0.5", "model.gradient_checkpointing=reentrant"],
        ["data=llava_video_178k", "data.video_root=FOLDER", "data.mixture=mixture.yaml"],
        ["optimizer.lr=1e-4", "seed=null", "+trainer.extra=1", "paths.run_dir=x", "trainer=ddp"],
    ],
)
def test_what_is_right_passes(words, monkeypatch):
    monkeypatch.setenv("BIMBA_ROOT", str(ROOT))
    check_command_line(ROOT / "conf", "train", words)


@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_the_command_exits_with_2_at_once(script, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / f"{script}.py"), "checkpiont=x"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr == "error: There is no key checkpiont; did you mean checkpoint?\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["trainer=gpu"], ["trainer.accelerator=gpu with trainer.devices=1 cannot be had here", "trainer=cpu runs"]),
        (["trainer.accelerator=tpu"], ["trainer.accelerator=tpu", "cannot be had here", "`bimba doctor` lists"]),
        (["trainer.max_steps=-5"], ["Lightning refuses the keys of trainer: `max_steps` must be", "You passed in -5"]),
        (["optimizer.betas=[0.9]", "checkpoint=lacks_a_tensor"], ["optimizer.betas is [0.9]; expected two numbers"]),
        (["trainer.devices=9", "checkpoint=lacks_a_tensor"], ["expected a multiple of the 9 processes"]),
        (["data.num_workers=-1"], ["data.num_workers is -1; expected 0 or more"]),
        (["data.global_batch_size=0"], ["data.global_batch_size is 0; expected a multiple of the 1 processes"]),
        (["trainer.devices=9"], ["expected a multiple of the 9 processes", "Change it, or trainer.devices"]),
        (["checkpoint=lacks_a_tensor"], ["do not fit its config.json", "missing: language_model"]),
        (["resume=nowhere"], ["resume=nowhere is no file and no folder; expected auto"]),
        (["data=llava_video_178k"], ["There is no default for data.video_root; give data.video_root=..."]),
        (
            ["data=llava_video_178k", "data.video_root=nowhere"],
            ["nowhere: no such folder"],
        ),
        (
            ["data=llava_video", "data.video_folder=folder", "data.annotations=gone.json"],
            ["gone.json: no such annotation"],
        ),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] and " " not in value[0] else "",
)
def test_training_is_refused(overrides, says, train_config, train_script, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SystemExit) as stop:
        train_script.main(train_config(*overrides))
    check_said(stop.value.code, ["error: ", *says])


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), ["can't allocate memory"]),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried 2 GiB.\nmore"),
            ["CUDA out of memory"],
        ),
        (MemoryError(), ["Memory ran out (MemoryError)"]),
    ],
    ids=["cpu", "gpu", "python"],
)
def test_training_that_runs_out_of_memory_says_what_takes_less(error, says, train_config, train_script, monkeypatch):
    def fit(*args):
        raise error

    monkeypatch.setattr(train_script, "fit", fit)
    with pytest.raises(SystemExit) as stop:
        train_script.main(train_config())
    check_said(stop.value.code, ["error: Memory ran out", *says, "data.batch_size", "resume="])


def test_an_error_of_ours_keeps_its_trace(train_config, train_script, monkeypatch):
    def fit(*args):
        raise RuntimeError("a mistake in the code")

    monkeypatch.setattr(train_script, "fit", fit)
    with pytest.raises(RuntimeError, match="a mistake in the code"):
        train_script.main(train_config())


def test_ctrl_c_before_training_says_where_things_are(train_config, train_script, monkeypatch, capsys, tmp_path):
    def fit(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_script, "fit", fit)
    with pytest.raises(SystemExit) as stop:
        train_script.main(train_config())
    assert stop.value.code == 130
    check_said(capsys.readouterr().err, [f"interrupted; what was written is in {tmp_path}"])


@pytest.fixture
def evaluate(evaluate_script, monkeypatch, tmp_path):
    """evaluate.py's function on a composed configuration."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    monkeypatch.setenv("BIMBA_ROOT", str(ROOT))
    monkeypatch.setattr("bimba.report.facts.changed_settings", lambda config: [])
    GlobalHydra.instance().clear()

    def run(*overrides):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("evaluate", [f"output_dir={tmp_path}", *overrides], return_hydra_config=True)
        cfg.hydra.runtime.output_dir = str(tmp_path)
        HydraConfig.instance().set_config(cfg)
        evaluate_script.main(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]))

    yield run
    HydraConfig.instance().cfg = None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["limit=abc"], ["limit is 'abc'; expected a number above 0", "or null for all"]),
        (["limit=0"], ["limit is 0; expected a number above 0"]),
        (["limit=nan"], ["limit is nan; expected a number above 0"]),
        (["limit=inf"], ["limit is inf; expected a number above 0"]),
        (["decode_deadline_s=nan"], ["decode_deadline_s is nan; expected a number of at least 0, or null"]),
        (["num_frames=many"], ["num_frames is 'many'; expected a whole number of at least 1, or null"]),
        (["num_frames=0"], ["num_frames is 0; expected a whole number of at least 1, or null"]),
        (["temporal_pooling=2.5"], ["temporal_pooling is 2.5; expected a whole number of at least 1, or null"]),
        (["answers=guess"], ["answers is 'guess'; expected one of generate, choose"]),
        (["+extra=1"], ["Nobody reads extra; expected only answers"]),
    ],
)
def test_an_evaluation_is_refused(overrides, says, evaluate):
    with pytest.raises(SystemExit) as stop:
        evaluate(*overrides)
    check_said(stop.value.code, ["error: ", *says])


def test_an_evaluation_that_ends_early_keeps_its_answers(evaluate, evaluate_script, monkeypatch, capsys, tmp_path):
    for error, status in ((KeyboardInterrupt(), 130), (MemoryError(), None)):

        def stop(*args, error=error):
            raise error

        monkeypatch.setattr(evaluate_script, "evaluate", stop)
        with pytest.raises(SystemExit) as stopped:
            evaluate()
        said = capsys.readouterr().err or stopped.value.code
        check_said(said, [f"Answers are kept: the same command with output_dir={tmp_path} goes on from them"])
        assert status is None or stopped.value.code == status


def test_a_log_on_a_full_disk_is_no_trace(evaluate, evaluate_script, monkeypatch, capsys):
    monkeypatch.setattr(logging, "raiseExceptions", True)  # undone after the test

    def log_on(*arguments):
        handler = logging.FileHandler("/dev/full")
        record = logging.makeLogRecord({"msg": "The disk is full."})
        handler.emit(record)
        handler.stream = None  # what it holds cannot be flushed

    monkeypatch.setattr(evaluate_script, "evaluate", log_on)
    evaluate()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"pretraned": "x"}, ["--model_args pretraned=: nobody reads it; did you mean pretrained=?", "Expected pretr"]),
        ({"pretrained": "nowhere"}, ["There is no checkpoint folder nowhere", "bimba-tiny"]),
        ({"pretrained": "good", "short_videos": "skip"}, ["short_videos is 'skip'; expected one of error, repeat"]),
        ({"pretrained": "good", "num_frames": 0}, ["num_frames is 0; expected a whole number of at least 1"]),
        ({"pretrained": "good", "num_frames": True}, ["num_frames is True; expected a whole number of at least 1"]),
        ({"pretrained": "good", "temporal_pooling": 2.5}, ["temporal_pooling is 2.5; expected a whole number"]),
        ({"pretrained": "good", "workers": "two"}, ["workers is 'two'; expected a whole number of at least 1"]),
        ({"pretrained": "good", "cache_gb": "2GB"}, ["cache_gb is '2GB'; expected a number of at least 0"]),
        ({"pretrained": "good", "token_cache_gb": -1}, ["token_cache_gb is -1; expected a number of at least 0"]),
        ({"pretrained": "good", "batch_questions": "no"}, ["batch_questions is 'no'; expected true or false"]),
        ({"pretrained": "good", "device": "gpu"}, ["The device 'gpu' cannot be used here", "expected auto, cpu"]),
    ],
)
def test_the_harness_is_refused(arguments, says):
    """lmms-eval itself prints a trace above any message of a model, and exits with 0."""
    from lmms_eval_plugin.models.bimba import Bimba

    with pytest.raises(BimbaError) as caught:
        Bimba(**arguments)
    check_said(str(caught.value), says)
