"""The experiments at 7B sizes say what they mean to, and run, with small stand-ins for model and machine."""

import json
import re

import pytest
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf

from bimba.data.recipe import Recipe
from bimba.model.queries import query_grid
from bimba.training import ModelSettings, set_trainable
from bimba.training.optim import build_optimizer
from bimba.training.trainable import count_parts
from tests.conf.conftest import ROOT
from tests.data import layout

EXPERIMENTS = ("bimba_7b_paper", "bimba_7b", "bimba_7b_16x")
MIXTURE = f"[{{json_path: '{{{layout.YOUTUBE},{layout.ACADEMIC}}}/*.json', sampling_strategy: all}}]"
TRAINED = {  # of every one: the projector, the compressor, and adapters of rank 128 on q and v of 28 layers
    "projector": (1152 + 1) * 3584 + (3584 + 1) * 3584,
    "compressor": 84_284_928,
    "lora": 28 * 128 * ((3584 + 3584) + (3584 + 512)),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Overrides for six samples of two sources, read in this process, a model of few layers, no probes and reports."""
    folder = tmp_path_factory.mktemp("videos")
    layout.make(folder)
    return (
        f"data.video_root={folder}",
        f"data.mixture={MIXTURE}",
        "data.num_workers=0",
        "callbacks=none",
        "model.base=null",
        "model.config.vision_config.image_size=24",
        "model.config.vision_config.num_hidden_layers=1",
        "model.config.text_config.num_hidden_layers=1",
    )


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(train_config, one, other):
    """What two compositions have otherwise: groups, and keys that do not come from another choice of trainer."""
    first, second = (
        dict(leaves(OmegaConf.to_container(train_config(f"experiment={name}", "trainer=cpu")))) for name in (one, other)
    )
    assert first.keys() == second.keys()
    found = {key: (first[key], second[key]) for key in first if first[key] != second[key]}
    chosen = [choices(train_config, name) for name in (one, other)]
    return found | {
        group: (chosen[0][group], chosen[1][group]) for group in chosen[0] if chosen[0][group] != chosen[1][group]
    }


def choices(train_config, experiment):
    train_config(f"experiment={experiment}")
    return {group: name for group, name in HydraConfig.get().runtime.choices.items() if group != "experiment"}


def test_the_published_recipe(train_config):
    cfg = train_config("experiment=bimba_7b_paper")
    lora, optimizer, data = cfg.model.lora, cfg.optimizer, cfg.data
    assert (lora.r, lora.alpha, lora.dropout, list(lora.target_modules)) == (128, 32, 0.05, ["q_proj", "v_proj"])
    assert (optimizer.lr, optimizer.vision_tower_lr, optimizer.weight_decay) == (1e-6, 2e-6, 0.0)
    assert (optimizer.warmup_ratio, optimizer.schedule, optimizer.min_lr_ratio) == (0.03, "cosine", 0.0)
    assert (list(optimizer.betas), optimizer.eps, cfg.trainer.gradient_clip_val) == ([0.9, 0.999], 1e-8, 1.0)
    assert (cfg.model.config.num_frames, cfg.model.config.temporal_pooling) == (64, None)  # None: the checkpoint's
    assert (data.recipe, data.short_videos, data.max_length) == ("original", None, 32768)
    assert (data.batch_size, data.global_batch_size / 8) == (1, 2)  # two passes on each of eight GPUs
    assert (cfg.trainer.max_epochs, cfg.trainer.max_steps, cfg.trainer.precision) == (1, -1, "bf16-mixed")


def test_the_table_of_recipes_has_what_the_paper_sets_otherwise(train_config):
    found = differences(train_config, "bimba_7b", "bimba_7b_paper")
    assert found.pop("data.recipe") == ("default", "original")
    rows = [line.split(" | ") for line in (ROOT / "docs/recipes.md").read_text().splitlines() if line.startswith("| `")]
    told = {row[0].strip("| `"): tuple(yaml.safe_load(cell.strip("`")) for cell in row[1:3]) for row in rows}
    assert {key: values for key, values in told.items() if key not in Recipe.__dataclass_fields__} == found


def test_the_file_lists_every_difference_from_the_paper(train_config):
    text = (ROOT / "conf/experiment/bimba_7b.yaml").read_text()
    told = set(re.findall(r"^#   (?:  )?([a-z_.]+):? ", text, re.MULTILINE))
    assert told == set(differences(train_config, "bimba_7b", "bimba_7b_paper")) | set(Recipe.__dataclass_fields__)


def test_sixteenfold_is_the_recipe_with_more_frames_in_as_many_tokens(train_config):
    assert differences(train_config, "bimba_7b", "bimba_7b_16x") == {
        "model.config.num_frames": (64, 256),
        "model.config.temporal_pooling": (None, 4),
    }
    assert query_grid(256, 27, (4, 2)) == query_grid(64, 27, (1, 2)) == (64, 14)
    assert 64 * 14 * (14 + 1) == 13_440 < train_config("experiment=bimba_7b_16x").data.max_length


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_at_full_size_it_trains_what_it_says(experiment, train_config):
    from bimba import BimbaConfig, BimbaForConditionalGeneration

    cfg = train_config(f"experiment={experiment}")
    settings = ModelSettings.from_node(OmegaConf.to_container(cfg.model, resolve=True))
    sizes = {key: value for key, value in settings.config.items() if value is not None}
    with torch.device("meta"):
        model = BimbaForConditionalGeneration(BimbaConfig(**sizes, compressor=settings.compressor))
        set_trainable(model, settings.tuning, settings.lora)
    optimizer, _ = build_optimizer(model, instantiate(cfg.optimizer, _convert_="all"), 1000)
    trained = {count.part: count.trained for count in count_parts(model.named_parameters()) if count.trained}
    rates = {group["name"]: group["initial_lr"] for group in optimizer.param_groups}
    adapters_in_vision = experiment == "bimba_7b_paper"
    assert trained == TRAINED | ({"vision_lora": 26 * 2 * 128 * (1152 + 1152)} if adapters_in_vision else {})
    assert rates == {"base": 1e-6, "base_no_decay": 1e-6} | ({"vision_tower": 2e-6} if adapters_in_vision else {})


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_runs_with_a_small_model_on_this_machine(experiment, small, train_config, train_script):
    stand_ins = ("model=bimba_tiny", "trainer=cpu", "data.global_batch_size=2", "model.config.num_frames=4")
    trainer = train_script.fit(train_config(f"experiment={experiment}", *small, *stand_ins))
    assert (trainer.current_epoch, trainer.global_step, trainer.accumulate_grad_batches) == (1, 3, 2)  # of six samples
    assert trainer.callback_metrics["train/loss"] > 0
    config = trainer.lightning_module.model.config
    assert (config.num_frames, config.temporal_pooling) == (4, 4)
    assert config.newline_after_medium == (experiment != "bimba_7b_paper")


@pytest.mark.parametrize(("debug", "steps"), [("fast", 3), ("overfit", 100), ("profile", 6)])
def test_debug_runs(debug, steps, small, train_config, train_script, tmp_path):
    cfg = train_config(
        f"debug={debug}",
        "data=llava_video_178k",
        *small,
        "optimizer=adamw",
        "data.val_samples=2",
        "data.global_batch_size=1",
        "model.config.num_frames=2",
        "model.config.temporal_pooling=2",
    )
    assert cfg.trainer.max_steps == steps
    cfg.trainer.max_steps = min(steps, 6)
    assert train_script.fit(cfg).global_step == min(steps, 6)
    if debug == "profile":
        (trace,) = (tmp_path / "profile").glob("*.pt.trace.json")
        names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
        assert any("[pl][profile]" in str(name) and "training_step" in str(name) for name in names)
        assert any("compressor" in str(name) for name in names)  # modules by their names
        assert "aten::mm" in (tmp_path / "profile/fit-operations.txt").read_text()
