"""The installed wheel, used away from the repository: the commands, the plugin of the harness, AutoModel, types."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tiny_checkpoint import write_needles, write_video

from tests.release.conftest import ROOT, run

TRAINING = (
    "model.config.num_frames=8",
    "model.config.temporal_pooling=2",
    "trainer.max_steps=1",
    "data.prepare.num_clips={train: 2, test: 1}",
    "data.prepare.workers=1",
    "data.global_batch_size=2",
    "data.batch_size=2",
    "data.num_workers=0",
    "data.val_samples=0",
    "hydra.run.dir=run",
)


@pytest.fixture(scope="module")
def trained(installed, tmp_path_factory):
    """A folder in which `bimba train` was called."""
    folder = tmp_path_factory.mktemp("elsewhere")
    printed = run(installed / "bimba", "train", *TRAINING, cwd=folder, OMP_NUM_THREADS="1")
    return folder, printed


def test_it_is_not_the_checkout_that_runs(installed, tmp_path):
    code = "import bimba, lmms_eval_plugin, hydra_plugins.bimba_launcher as h; print(bimba, lmms_eval_plugin, h)"
    printed = run(installed / "python", "-c", code, cwd=tmp_path)
    assert printed.count(str(installed.parent)) == 3 and str(ROOT) not in printed


@pytest.mark.parametrize("command", [["bimba"], ["python", "-m", "bimba"]])
def test_help(installed, tmp_path, command):
    printed = run(installed / command[0], *command[1:], "--help", cwd=tmp_path)
    assert "train" in printed and "doctor" in printed


def test_doctor(installed, tmp_path):
    findings = json.loads(run(installed / "bimba", "doctor", "--json", cwd=tmp_path))
    assert findings["selective_scan: chunked"] == "ready"


def test_ask(installed, tmp_path):
    write_video(tmp_path / "video.mp4", num_frames=32)
    command = [installed / "bimba", "ask", "video.mp4", "Which digit?", "--options", "3", "7", "--json"]
    answer = json.loads(run(*command, cwd=tmp_path))
    assert answer["answer"] in ("A", "B")


def test_train_leaves_everything_in_the_current_folder(trained, installed):
    folder, printed = trained
    assert {path.name for path in folder.iterdir()} == {"run", "data"}
    assert (folder / "run" / "checkpoint" / "model.safetensors").is_file()
    assert "bimba evaluate checkpoint=run/checkpoint" in printed


def test_evaluate(trained, installed):
    folder, _ = trained
    write_needles(folder / "data" / "needle_test")
    told = f"benchmark.environment.BIMBA_NEEDLE_ROOT={folder / 'data' / 'needle_test'}"
    run(installed / "bimba", "evaluate", "checkpoint=run/checkpoint", "limit=1", "output_dir=scores", told, cwd=folder)
    assert len(json.loads((folder / "scores" / "summary.json").read_text())["tasks"]) == 3
    assert "bimba evaluate checkpoint=run/checkpoint" in (folder / "scores" / "report.md").read_text()


def test_the_harness_finds_model_and_tasks(trained, installed, tmp_path):
    folder, _ = trained
    root = write_needles(tmp_path / "needle")
    arguments = ["--model", "bimba", "--model_args", "pretrained=run/checkpoint,device=cpu", "--tasks", "bimba_needle"]
    command = [installed / "python", "-m", "lmms_eval", *arguments, "--batch_size", "1", "--limit", "2"]
    printed = run(*command, cwd=folder, BIMBA_NEEDLE_ROOT=str(root))
    assert "bimba_needle_retrieval" in printed


def test_auto_classes_load_what_was_trained(trained, installed):
    folder, _ = trained
    code = (
        "import bimba; from transformers import AutoModelForImageTextToText as M, AutoProcessor as P; "
        "print(type(M.from_pretrained('run/checkpoint')).__name__, type(P.from_pretrained('run/checkpoint')).__name__)"
    )
    printed = run(installed / "python", "-c", code, cwd=folder)
    assert printed.split() == ["BimbaForConditionalGeneration", "BimbaProcessor"]


def test_its_types_are_read(installed, tmp_path):
    """mypy judges a consumer's calls by the annotations in the wheel, which ``py.typed`` tells it to."""
    (tmp_path / "consumer.py").write_text(
        "from bimba.types import BadSample\n"
        "BadSample(path=7, error='empty')\n"
        "BadSample(path='a.mp4', reason='empty')\n"
        "BadSample(path='a.mp4', error='empty')\n"
    )
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nfollow_imports = silent\nignore_missing_imports = True\n"
        "[mypy-torch.*,numpy.*]\nfollow_imports = skip\n"  # theirs take a minute to read
    )
    command = [sys.executable, "-m", "mypy", "--python-executable", str(installed / "python"), "consumer.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert 'consumer.py:2: error: Argument "path" to "BadSample" has incompatible type "int"' in done.stdout
    assert 'consumer.py:3: error: Unexpected keyword argument "reason" for "BadSample"' in done.stdout
    assert "consumer.py:4" not in done.stdout and "py.typed" not in done.stdout
