"""Every configuration composes, every key has a reader, and what can be built without a checkpoint is built."""

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.utils import get_class, get_method, instantiate
from omegaconf import OmegaConf

from bimba.training import ModelSettings
from bimba.training.optim import OptimizerSettings

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


GROUPS = ("model", "model/compressor", "data", "trainer", "optimizer", "logger", "callbacks", "experiment", "debug")
GPU_TRAINERS = ("gpu", "ddp", "fsdp", "fsdp_multinode")
CHOICES = [f"{group}={option}" for group in GROUPS for option in options(group)]


def keys(node, prefix=""):
    """Dotted names of all keys of a configuration, without those below free-form nodes."""
    found = set()
    for key, value in node.items():
        found.add(f"{prefix}{key}")
        if isinstance(value, dict):
            found |= keys(value, f"{prefix}{key}.")
    return found


def test_the_groups_of_the_design_are_there():
    assert {path.name for path in CONF.iterdir() if path.is_dir()} >= set(GROUPS) - {"model/compressor"} | {
        "paths",
        "hydra",
        "benchmark",
    }


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_composes_and_resolves(choice, train_config):
    cfg = train_config(choice)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    ModelSettings.from_node(OmegaConf.to_container(cfg.model, resolve=True))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_opens_with_its_command_and_adds_no_key(experiment, train_config):
    lines = (CONF / f"experiment/{experiment}.yaml").read_text().splitlines()
    assert lines[1].startswith(f"# python train.py experiment={experiment}")
    cfg = train_config(f"experiment={experiment}")
    chosen = HydraConfig.get().runtime.choices
    groups = [
        f"{group}={chosen[group]}" for group in GROUPS if chosen.get(group) and group not in ("experiment", "debug")
    ]
    without = train_config(*groups)
    added = keys(OmegaConf.to_container(cfg)) - keys(OmegaConf.to_container(without))
    added = {key for key in added if not key.startswith("evaluate.")}  # names of the experiment's own
    assert not added, f"keys that no group defines, so nobody reads them: {sorted(added)}"


@pytest.mark.parametrize("debug", options("debug"))
def test_every_debug_opens_with_its_command_and_adds_no_key(debug, train_config):
    lines = (CONF / f"debug/{debug}.yaml").read_text().splitlines()
    assert lines[1].startswith(f"# python train.py debug={debug} ")
    added = keys(OmegaConf.to_container(train_config(f"debug={debug}"))) - keys(OmegaConf.to_container(train_config()))
    assert not {key for key in added if not key.startswith("trainer.profiler.")}  # those are its target's


def targets(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_":
                yield value
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_target_exists(choice, train_config):
    for target in set(targets(OmegaConf.to_container(train_config(choice)))):
        try:
            get_class(target)
        except ValueError:
            get_method(target)


@pytest.mark.parametrize("trainer", [name for name in options("trainer") if name not in GPU_TRAINERS])
def test_trainers_loggers_and_callbacks_are_built(trainer, train_config, train_script):
    installed = [name for name in options("logger") if name in ("csv", "wandb") or importlib.util.find_spec(name)]
    for callbacks, logger in itertools.product(options("callbacks"), installed):
        cfg = train_config(f"trainer={trainer}", f"callbacks={callbacks}", f"logger={logger}")
        built = train_script.build_trainer(cfg)
        assert built.max_steps == cfg.trainer.max_steps
        assert len(built.loggers) == len(cfg.logger)


@pytest.mark.parametrize("trainer", GPU_TRAINERS)
def test_gpu_trainers_are_built_on_the_cpu_for_want_of_one(trainer, train_config, train_script):
    overrides = ["trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=1", "trainer.precision=32-true"]
    train_script.build_trainer(train_config(f"trainer={trainer}", *overrides))


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "32-true"), ("bfloat16", "bf16-mixed")])
def test_the_precision_of_a_sharded_run_goes_by_the_model(dtype, precision, train_config, train_script):
    assert train_script.precision_of(train_config("trainer=fsdp", f"model.dtype={dtype}")) == precision


@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_optimizers_are_built(optimizer, train_config):
    built = instantiate(train_config(f"optimizer={optimizer}").optimizer, _convert_="all")
    assert isinstance(built, OptimizerSettings)
    assert isinstance(built.lr, float)  # YAML reads 1e-3 as a string unless Hydra does


@pytest.mark.parametrize("compressor", options("model/compressor"))
@pytest.mark.parametrize("model", options("model"))
def test_models_have_the_published_sizes(model, compressor, train_config):
    from bimba import BimbaConfig, BimbaForConditionalGeneration

    cfg = train_config(f"model={model}", f"model/compressor={compressor}")
    settings = ModelSettings.from_node(OmegaConf.to_container(cfg.model, resolve=True))
    sizes = {key: value for key, value in settings.config.items() if value is not None}
    sizes["text_config"].setdefault("vocab_size", 1000)
    with torch.device("meta"):
        built = BimbaForConditionalGeneration(BimbaConfig(**sizes, compressor=settings.compressor))
    total = sum(p.numel() for p in built.parameters())
    if model == "bimba_qwen2_7b":
        assert 7.9e9 < total < 8.5e9
        if compressor == "mamba":
            assert sum(p.numel() for p in built.compressor.parameters()) == 84_284_928
    if model == "bimba_tiny":
        assert 1e6 < total < 3e6


@pytest.mark.parametrize("override", ["trainer.max_stepps=3", "nonsense=1", "data.batchsize=2", "optimizer.rate=1"])
def test_an_unknown_key_is_an_error(override, train_config):
    with pytest.raises(ConfigCompositionException, match=override.split("=")[0]):
        train_config(override)


def test_the_scripts_expect_the_keys_that_there_are(train_config, train_script, evaluate_script):
    assert set(train_config()) == train_script.KEYS
    assert set(compose("evaluate", ["logger=csv"])) == evaluate_script.KEYS  # the group is empty unless asked for


def test_the_folder_of_a_sweep_is_known_before_its_first_run(monkeypatch):
    monkeypatch.delenv("BIMBA_ROOT", raising=False)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["hydra.job.name=train"], return_hydra_config=True)
    assert cfg.hydra.sweep.dir.startswith("./outputs/train/sweep/")


def test_without_arguments_it_is_the_embedded_default(train_config):
    cfg = train_config()
    assert (cfg.model.base, cfg.checkpoint, cfg.trainer.accelerator) == ("bimba-tiny", "bimba-tiny", "cpu")
    assert HydraConfig.get().runtime.choices["data"] == "needle"
