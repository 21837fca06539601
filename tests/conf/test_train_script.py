"""train.py as a user meets it: run as a command, from another folder."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bimba.types import BimbaError
from tests.training.fakes import tokenizer_folder

# The original's tiny adapter and its base, whose sizes the keys of conf/model must say; the vocabulary is no size.
ADAPTER = Path(__file__).parents[1] / "golden/model/lora/bimba-lora-qwen-ckpt"
BASE = ADAPTER.parents[1] / "ckpt_56_base_nocompressor"
VISION_SIZES = ("image_size=56", "patch_size=14", "hidden_size=48", "intermediate_size=96")
TEXT_SIZES = (
    "hidden_size=64",
    "intermediate_size=128",
    "num_hidden_layers=2",
    "num_key_value_heads=2",
    "max_position_embeddings=32768",
    "tie_word_embeddings=false",
    "rope_parameters.rope_theta=1000000.0",
)
SCRIPT = Path(__file__).parents[2] / "train.py"


def run(*arguments, cwd, script=SCRIPT):
    environment = {key: value for key, value in os.environ.items() if key != "BIMBA_ROOT"}
    return subprocess.run(
        [sys.executable, str(script), *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two steps of the default on a handful of needle clips, from random weights, with relative paths."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(tokenizer_folder(), folder / "tokenizer")
    done = run(
        "checkpoint=null",
        "model.tokenizer=tokenizer",
        "model.config.num_frames=8",
        "model.config.temporal_pooling=2",
        "trainer.max_steps=2",
        "data.prepare.root=needle",
        "data.prepare.num_clips={train: 8, test: 1}",
        "data.prepare.workers=1",
        "data.global_batch_size=4",
        "data.batch_size=2",
        "data.num_workers=0",
        "data.val_samples=0",
        "hydra.run.dir=outputs/my run",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_run_leaves_metrics_config_and_checkpoint(finished):
    folder, _ = finished
    run_dir = folder / "outputs/my run"
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1"]
    assert all(float(row["train/loss"]) > 0 for row in rows)
    assert json.loads((run_dir / "checkpoint/config.json").read_text())["model_type"] == "bimba"
    assert "max_steps: 2" in (run_dir / "config.yaml").read_text()
    assert (run_dir / "resume/step_00000002.ckpt").is_file()
    record = json.loads((run_dir / "run.json").read_text())
    assert record["status"] == "finished" and record["metrics"]["train/loss"] == float(rows[-1]["train/loss"])
    assert record["compression"] == {"frames": 8, "patch_tokens": 8 * 64, "visual_tokens": 4 * 16}
    assert {path.name for path in folder.iterdir()} == {"outputs", "needle", "tokenizer"}


def test_it_says_what_is_trained_and_what_to_do_next(finished):
    _, done = finished
    assert "compressor" in done.stdout
    assert "lora" in done.stdout
    assert "step 2/2" in done.stdout
    last = done.stdout.strip().splitlines()[-2:]
    assert "evaluate.py 'checkpoint=outputs/my run/checkpoint'" in last[0]
    assert "bimba ask VIDEO \"QUESTION\" --checkpoint 'outputs/my run/checkpoint'" in last[1]
    assert done.stderr == ""


def test_what_it_left_loads(finished):
    from bimba.checkpoint import load_pretrained

    model, processor = load_pretrained(finished[0] / "outputs/my run/checkpoint")
    assert model.config.num_frames == processor.num_frames == 8
    assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("recipe", ["default", "original"])
def test_training_starts_from_an_adapter_and_remembers_how_its_recipe_asks(
    finished, recipe, train_config, train_script, tmp_path
):
    from bimba.checkpoint import load_pretrained

    trainer = train_script.fit(
        train_config(
            f"checkpoint={ADAPTER}",
            f"base={BASE}",
            "model.config.num_frames=8",
            "model.config.temporal_pooling=null",
            *(f"model.config.vision_config.{size}" for size in VISION_SIZES),
            *(f"model.config.text_config.{size}" for size in TEXT_SIZES),
            "+model.config.text_config.vocab_size=416",
            f"data.prepare.root={finished[0] / 'needle'}",
            "data.prepare.num_clips={train: 8, test: 1}",
            "data.global_batch_size=2",
            "data.batch_size=2",
            "data.num_workers=0",
            "data.val_samples=0",
            f"data.recipe={recipe}",
            "trainer.max_steps=1",
        )
    )
    assert trainer.global_step == 1
    model, processor = load_pretrained(tmp_path / "checkpoint")
    assert model.config.newline_after_medium == processor.newline_after_medium == (recipe == "default")
    assert model.config.temporal_pooling == processor.temporal_pooling == 1
    assert model.config.compressor["name"] == "mamba"


def test_an_unknown_key_is_one_message_without_a_trace(tmp_path):
    done = run("trainer.max_stepps=3", cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "error: There is no key trainer.max_stepps; did you mean trainer.max_steps?"
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint=nowhere"], "There is no checkpoint folder nowhere"),
        ([f"checkpoint={ADAPTER}"], "needs its base, lmms-lab/LLaVA-Video-7B-Qwen2"),
        (["base=somewhere"], "is no adapter (it has no adapter_config.json), so it takes no base=somewhere"),
        (["checkpoint=null", "base=somewhere"], "give checkpoint=<adapter>"),
        (["+extra=1"], "Nobody reads extra"),
        (["+trainer.extra=1"], "Nobody reads trainer.extra; remove it"),
        (["+data.extra=1"], "Nobody reads data.extra; remove it"),
        (["data.short_videos=skip"], "short_videos is 'skip'; expected one of error, repeat"),
        (["resume=nowhere.ckpt"], "resume=nowhere.ckpt is no file and no folder; expected auto"),
        (["experiment=bimba_7b"], "give data.video_root=..."),
        (["model.dtype=bfloat16"], "Expected trainer.precision=bf16-mixed"),
        (["trainer.precision=bf16-true"], "Expected trainer.precision=bf16-mixed"),
        (["trainer.precision=16-mixed"], "float16 needs its gradients scaled"),
        (["trainer.precision=transformer-engine"], "Expected trainer.precision=bf16-mixed"),
    ],
)
def test_what_the_user_got_wrong_is_one_message(overrides, message, train_config, train_script):
    with pytest.raises(SystemExit) as stop:
        train_script.main(train_config(*overrides))
    assert message in stop.value.code


def test_evaluations_without_the_callback_that_saves_are_refused_before_training(train_config, train_script):
    with pytest.raises(SystemExit, match="evaluate needs the checkpoint that callbacks.save writes"):
        train_script.main(train_config("callbacks.save=null", "+evaluate.test=['benchmark=needle']"))


def test_the_trace_can_be_asked_for(train_config, train_script):
    with pytest.raises(BimbaError):
        train_script.main(train_config("checkpoint=nowhere", "show_traceback=true"))


def test_help_and_cfg_do_not_import_torch(tmp_path):
    code = f"""
import runpy, sys
sys.argv = [{str(SCRIPT)!r}, sys.argv[1], *sys.argv[2:]]
try:
    runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
finally:
    print("torch" in sys.modules, "lightning" in sys.modules)
"""
    program = tmp_path / "program.py"
    program.write_text(code)
    for arguments in (["--help"], ["--cfg", "job", "model=bimba_qwen2_7b"]):
        done = run(*arguments, cwd=tmp_path, script=program)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "False False"
    assert "num_hidden_layers: 28" in done.stdout
