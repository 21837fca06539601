"""What the README shows works: its commands compose, its Python runs, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoint import write_video

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("python ")])
def test_a_python_command_composes(command):
    words = shlex.split(command)[1:]
    if "--cfg" not in words:
        words += ["--cfg", "job"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "checkpoint:" in done.stdout


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ")])
def test_a_make_target_exists(command):
    done = subprocess.run(["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_other_kind_of_command_is_shown():
    """`bimba` and `lmms-eval` commands are run by tests/test_cli.py and tests/lmms_eval_plugin."""
    assert {c.split()[0] for c in commands()} <= {"make", "python", "pip", "bimba", "lmms-eval"}


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split("\n")[0])
def test_python_runs(code, tmp_path, monkeypatch):
    write_video(tmp_path / "video.mp4", num_frames=40)
    for name, folder in (("mmiemon/BIMBA-LLaVA-Qwen2-7B", "lora/bimba-lora-qwen-ckpt"),
                         ("lmms-lab/LLaVA-Video-7B-Qwen2", "ckpt_56_base_nocompressor")):  # fmt: skip
        for copy in (tmp_path / name, tmp_path / Path(name).name):  # as from the hub, and as a folder
            shutil.copytree(ROOT / "tests/golden/model" / folder, copy)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert not [t for t in targets if not t.startswith("http") and not (ROOT / t).exists()]
