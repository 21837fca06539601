"""Two processes that torchrun starts, with what ``trainer=fsdp`` has options for, against one process.

Texts, images and a video meet each other in a step; layers are computed again in the backward pass; adapters of the
vision tower are trained; parts lie in the host's memory; the file to resume from holds everything.
"""

import subprocess
import sys

import pytest
import torch
import yaml

from tests.conf.test_sharded_run import SCRIPT, losses
from tests.data import layout

STEPS = 2
MIXTURE = [
    {"json_path": f"{layout.YOUTUBE}/*_cap_*.json", "sampling_strategy": "first:1"},
    {"json_path": "pictures.jsonl", "sampling_strategy": "first:2", "image_folder": "pictures"},
    {"json_path": "texts.json", "sampling_strategy": "first:1"},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    layout.make(folder)
    (folder / "few.yaml").write_text(yaml.safe_dump({"datasets": MIXTURE}))
    return folder


@pytest.fixture(scope="module")
def common(root):
    return (
        "optimizer=adamw",
        "optimizer.lr=0.01",
        "optimizer.warmup_ratio=0",
        "data=llava_video_178k",
        f"data.mixture={root / 'few.yaml'}",
        f"data.video_root={root}",
        f"data.annotation_root={root}",
        "data.global_batch_size=4",
        "data.batch_size=1",
        "data.num_workers=0",
        "model.config.num_frames=4",
        "model.config.temporal_pooling=1",
        "model.gradient_checkpointing=true",
        "model.lora.vision_tower=true",
        "save_frozen=true",
        "trainer.accelerator=cpu",
        f"trainer.max_steps={STEPS}",
    )


@pytest.fixture
def fit(train_config, train_script):
    """Trains in this process, which saves the time that imports take."""

    def fit_in(run_dir, *overrides):
        run_dir.mkdir()
        train_script.fit(train_config(*overrides, run_dir=run_dir))

    return fit_in


@pytest.fixture
def one(root, common, fit):
    if not (root / "one").is_dir():
        fit(root / "one", *common)
    return root / "one"


@pytest.fixture(scope="module")
def two(root, common):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    options = (
        "trainer=fsdp_multinode",
        "trainer.num_nodes=1",
        "trainer.devices=2",
        "trainer.strategy.cpu_offload=true",
    )
    command = [*torchrun, *common, *options, f"hydra.run.dir={root / 'two'}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return root / "two"


def state(run_dir):
    return torch.load(run_dir / f"resume/step_{STEPS:08d}.ckpt", weights_only=True)["state_dict"]


def test_two_processes_have_the_losses_and_weights_of_one(one, two):
    assert len(losses(one)) == STEPS
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    theirs = state(one)
    for name, weight in state(two).items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-4, msg=name)


def test_the_adapters_of_the_vision_tower_are_trained(two):
    adapters = [weight for name, weight in state(two).items() if "vision_tower" in name and "lora_B" in name]
    assert adapters
    assert all(weight.any() for weight in adapters)  # they begin as zeros


def test_a_run_goes_on_from_a_file_with_everything_and_no_base(root, common, fit, two, caplog):
    # The run begins with random weights, of which none must be left.
    resumed = ("checkpoint=null", "resume_with_changes=true", f"resume='{two}'", f"trainer.max_steps={STEPS + 1}")
    with caplog.at_level("INFO"):
        fit(root / "resumed", *common, *resumed)
    assert "Resumed with another configuration" in caplog.text  # warnings are seen
    assert "frozen weights are now those of" not in caplog.text
    after, before = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (root / f"resumed/resume/step_{STEPS + 1:08d}.ckpt", two / f"resume/step_{STEPS:08d}.ckpt")
    )
    assert after.keys() == before.keys()
    frozen = [name for name in before if "language_model" in name and "lora" not in name]
    assert frozen
    assert all(torch.equal(after[name], before[name]) for name in frozen)
