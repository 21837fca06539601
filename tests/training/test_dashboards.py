"""All of conf/callbacks/default.yaml at work at once, on one process and on two."""

import json
import os
import re
import socket
from pathlib import Path

import pytest
import torch

from bimba.training.breakdown import LossBySource
from bimba.training.code_version import RecordCode
from bimba.training.health import CompressorHealth
from bimba.training.loggers import CsvLogger, wandb_logger
from bimba.training.norms import UpdateNorms
from bimba.training.predictions import SamplePredictions
from bimba.training.probe import NeedleProbe
from bimba.training.throughput import Throughput
from tests.training.fakes import FakeData, read_metrics, tiny_module, tiny_trainer
from tests.training.wandb_run import read_wandb

DOCS = Path(__file__).parents[2] / "docs/dashboards.md"
MODEL = {"compressor": {"name": "mamba", "scan_backend": "chunked"}}


class Dealt(FakeData):
    """Each rank has its own samples, and a source named after it; the second rank can read none to validate."""

    def _loader(self, videos):
        rank = self.trainer.global_rank
        loader = super()._loader(videos)
        bare = loader.collate_fn

        def label(samples):
            batch = bare(samples)
            size = len(batch.get("input_ids", []))
            return {**batch, "sources": [f"rank{rank}"] * size, "modalities": ["video"] * size}

        loader.collate_fn = label
        return loader

    def val_dataloader(self):
        self.val_videos.bad = set(range(8)) if self.trainer.global_rank else set()
        return super().val_dataloader()


def callbacks(run_dir):
    return [
        Throughput(2, peak_flops=1e12),
        RecordCode(run_dir),
        LossBySource(2),
        UpdateNorms(2),
        CompressorHealth(2),
        SamplePredictions(samples=2, max_new_tokens=2),
        NeedleProbe(4, clips=3),
    ]


def train(run_dir, strategy="auto", devices=1, loggers=()):
    module = tiny_module(model=MODEL)
    trainer = tiny_trainer(run_dir, 4, callbacks(run_dir), strategy=strategy, devices=devices)
    trainer.loggers = [CsvLogger(run_dir), *loggers]
    trainer.fit(module, Dealt(module.processor))
    return trainer


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder of a run with all callbacks, logged to csv and wandb."""
    folder = tmp_path_factory.mktemp("one")
    train(folder, loggers=[wandb_logger(folder, project="test")]).loggers[1].experiment.finish()
    return folder


def documented(key, patterns):
    return any(re.fullmatch(pattern, key) for pattern in patterns)


def test_every_key_is_documented_and_every_documented_key_of_a_cpu_is_there(one):
    lines = DOCS.read_text().splitlines()
    cells = [line.split(" | ")[0] for line in lines if line.startswith("| `")]
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell) if "/" in name]
    patterns = {name: re.sub("<[a-z]+>", "[^/]+", name) for name in names}
    found = set(read_metrics(one)) - {"step", "epoch"}
    assert not [key for key in found if not documented(key, patterns.values())]
    elsewhere = ("memory/", "data/bad_videos", "train/lr/<group>", "predictions", "train/skipped")
    missing = [name for name, pattern in patterns.items() if not any(re.fullmatch(pattern, key) for key in found)]
    assert not [name for name in missing if not name.startswith(elsewhere)]


def test_wandb_has_all_that_the_csv_file_has_and_the_rest(one):
    run, metrics = read_wandb(one), read_metrics(one)
    for key in set(metrics) - {"step", "epoch"}:
        assert run.values[key] == pytest.approx(metrics[key], rel=1e-5), key
    assert run.config["code"] == json.loads((one / "code.json").read_text())
    assert list(run.folder.glob("files/media/table/*.json"))
    assert len(list(run.folder.glob("files/media/images/**/*.png"))) == 2


def test_a_step_is_one_row_and_each_has_a_loss(one):
    lines = (one / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 + 1  # four steps and a validation
    assert len(read_metrics(one)["train/loss"]) == 4


@pytest.mark.timeout(240)
def test_two_processes_report_together(one, tmp_path):
    torch.multiprocessing.spawn(_train_on_two, (tmp_path, _free_port()), nprocs=2)
    metrics, alone = read_metrics(tmp_path), read_metrics(one)
    assert {"loss_by_source/rank0", "loss_by_source/rank1"} <= set(metrics)
    assert set(alone) - set(metrics) == set()
    videos = [
        rate / metrics["speed/samples_per_second"][i] for i, rate in enumerate(metrics["speed/videos_per_second"])
    ]
    assert videos == pytest.approx([1.0, 1.0])
    assert len(metrics["needle/score"]) == 1
    assert metrics["needle/score"][0] * 4 == pytest.approx(
        round(metrics["needle/score"][0] * 4)
    )  # 3 clips, for 2 ranks
    assert len(list((tmp_path / "examples/predictions").glob("*/examples.jsonl"))) == 1


def _train_on_two(rank, folder, port):
    """One of two processes, as Lightning would start them."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    train(folder, strategy="ddp", devices=2)


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
