"""One folder for all pages: a small run, its checkpoint, a needle video and the original's checkpoints."""

from __future__ import annotations

import shutil

import pytest
from tiny_checkpoint import write_video

from tests.docs.fences import ROOT, Command
from tests.docs.shell import Shell

GOLDEN = ROOT / "tests/golden/model"
# Tiny checkpoints that the original wrote, by the names of the published ones: as folders, and as from the hub.
ORIGINALS = {
    "BIMBA-LLaVA-Qwen2-7B": "lora/bimba-lora-qwen-ckpt",
    "mmiemon/BIMBA-LLaVA-Qwen2-7B": "lora/bimba-lora-qwen-ckpt",
    "LLaVA-Video-7B-Qwen2": "ckpt_56_base_nocompressor",
    "lmms-lab/LLaVA-Video-7B-Qwen2": "ckpt_56_base_nocompressor",
}


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("clone")
    for name, source in ORIGINALS.items():
        shutil.copytree(GOLDEN / source, folder / name)
    write_video(folder / "video.mp4", num_frames=64)
    for path in ("benchmarks", "conf", "docs"):
        (folder / path).symlink_to(ROOT / path)
    shell = Shell(folder, {"VIDEO": "video.mp4", "CHECKPOINT": "outputs/mine/checkpoint", "RUNS": "outputs"})
    code, output = shell.run(Command("tests/docs/conftest.py", ("python", "train.py", "hydra.run.dir=outputs/mine")))
    assert code == 0, output
    return shell
