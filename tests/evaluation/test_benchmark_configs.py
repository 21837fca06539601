"""conf/benchmark: every file composes, every key has a reader, and the suite is the seven rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from replicas import SUITE

CONF = Path(__file__).resolve().parents[2] / "conf"
TASKS = CONF.parent / "lmms_eval_plugin/tasks"
NAMES = sorted(path.stem for path in (CONF / "benchmark").glob("*.yaml"))
SINGLE = [name for name in NAMES if name not in ("all", "suite")]
ROW_KEYS = {"name", "tasks", "metric", "chance", "categories", "published", "environment"}


@pytest.fixture
def benchmark(monkeypatch):
    def compose_benchmark(name: str) -> dict:
        monkeypatch.setenv("HF_HOME", "/home-of-data")
        monkeypatch.setenv("BIMBA_VNBENCH_ROOT", "unset by the test")
        monkeypatch.delenv("BIMBA_VNBENCH_ROOT")
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("evaluate", [f"benchmark={name}", "paths.root=/root-of-bimba"])
        return OmegaConf.to_container(config.benchmark, resolve=True)

    return compose_benchmark


@pytest.mark.parametrize("name", SINGLE)
def test_a_row_has_the_keys_that_evaluate_reads(benchmark, name):
    row = benchmark(name)
    assert set(row) - {"source"} == ROW_KEYS
    assert ("source" in row) == (not name.startswith("needle"))  # needles are made, not fetched
    assert row["name"] == name
    assert all(task in row["tasks"] for task in row["published"])
    assert row["environment"].get("HF_HOME", "/home-of-data") == "/home-of-data"


def test_vnbench_is_beside_the_others_unless_said_otherwise(benchmark, monkeypatch):
    assert benchmark("vnbench")["environment"]["BIMBA_VNBENCH_ROOT"] == "/home-of-data/vnbench"
    rows = benchmark("suite")["rows"]
    assert rows["vnbench"]["environment"]["BIMBA_VNBENCH_ROOT"] == "/home-of-data/vnbench"


def test_the_suite_is_the_seven_rows_and_all_is_another_name(benchmark):
    suite = benchmark("suite")
    assert benchmark("all") == suite
    assert suite["rows"] == {name: benchmark(name) for name in suite["rows"]}
    assert {task for row in suite["rows"].values() for task in row["tasks"]} == SUITE
    group = yaml.safe_load((TASKS / "bimba_suite/bimba_suite.yaml").read_text())
    assert group["task"] == [task for row in suite["rows"].values() for task in row["tasks"]]
