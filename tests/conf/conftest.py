import importlib.util
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]


def script(name):
    """The file train.py or evaluate.py as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def train_script():
    return script("train")


@pytest.fixture(scope="session")
def evaluate_script():
    return script("evaluate")


@pytest.fixture
def train_config(monkeypatch, tmp_path):
    """Composes conf/train.yaml as ``python train.py OVERRIDES`` does, for a run in ``tmp_path`` or another folder."""

    def compose_train(*overrides, run_dir=tmp_path):
        cfg = compose("train", [f"hydra.run.dir={run_dir}", *overrides], return_hydra_config=True)
        cfg.hydra.runtime.output_dir = str(run_dir)
        HydraConfig.instance().set_config(cfg)
        job = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
        OmegaConf.set_struct(job, True)
        return job

    monkeypatch.setenv("BIMBA_ROOT", str(ROOT))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield compose_train
    HydraConfig.instance().cfg = None
