"""A program that Lightning starts once per process: they train on uneven batches, and the first writes a report.

    python -m tests.training.sharded_program FOLDER PROCESSES

Sample 1 has no video and sample 6 cannot be read, so that a process has batches without one, and a whole batch of bad
samples; sample 9 is not a number. In the first validation, the second of two processes has bad samples only. In the
second one, it has a text while the first has a video. The compressor reads the question, so a process without a video
runs it on a question of its own.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset

from bimba.data.collate import collate
from bimba.data.tokenize import tokenize_conversation
from bimba.training import BimbaModule
from bimba.training.ema import Ema
from bimba.training.optim import OptimizerSettings
from bimba.training.parallel import ShardedStrategy
from bimba.training.predictions import SamplePredictions
from bimba.training.stream import shard
from tests.training.fakes import FakeVideos, tiny_module, tiny_trainer

SAMPLES, PER_STEP = 16, 4
NO_VIDEO, BAD, NOT_A_NUMBER = 1, 6, 9
VALIDATIONS = ([0, BAD, NO_VIDEO, BAD], [2, NO_VIDEO, 0, 3])


class UnevenVideos(FakeVideos):
    """As ``FakeVideos``, with answers of different lengths, a text, a bad sample and one that is not a number."""

    def __init__(self, processor: Any):
        super().__init__(processor, SAMPLES, bad=[BAD])

    def __getitem__(self, index: int) -> Any:
        sample: Any = super().__getitem__(index)
        if index == NO_VIDEO:
            turns = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "A, I would say"}]
            return {**tokenize_conversation(turns, self.processor.tokenizer, []), "pixel_values_videos": []}
        if index == NOT_A_NUMBER:
            sample["pixel_values_videos"][0][0] = torch.nan
        return sample


class UnevenData(L.LightningDataModule):
    """Process r of W has every W-th sample from the r-th on, one at a time."""

    def __init__(self, processor: Any):
        super().__init__()
        self.videos = UnevenVideos(processor)

    def train_dataloader(self) -> DataLoader[Any]:
        trainer: Any = self.trainer
        mine = range(trainer.global_rank, SAMPLES, trainer.world_size)

        def named(samples: Any) -> Any:
            batch: Any = collate(samples, pad_token_id=0)
            return batch

        rows = [self.videos[i] if i == BAD else {**self.videos[i], "id": str(i)} for i in mine]
        batches = [{**named([row]), **({"ids": [row["id"]]} if isinstance(row, dict) else {})} for row in rows]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        trainer: Any = self.trainer
        return DataLoader(Validations(self.videos, trainer.global_rank, trainer.world_size), batch_size=None)


class Validations(IterableDataset[Any]):
    """Each time that it is gone through, one process's share of the next of ``VALIDATIONS``."""

    def __init__(self, videos: UnevenVideos, rank: int, world_size: int):
        self.videos, self.rank, self.world_size = videos, rank, world_size
        self.next = iter(VALIDATIONS)

    def __iter__(self) -> Any:
        mine = next(self.next)[self.rank :: self.world_size]
        return (collate([self.videos[i]], pad_token_id=0) for i in mine)  # type: ignore[list-item]


def run(folder: Path, processes: int) -> None:
    settings = OptimizerSettings(lr=1e-2, warmup_ratio=0.0)
    tiny: Any = tiny_module(model={"compressor": {"name": "mamba", "question_conditioned": True}})
    module = BimbaModule(tiny.model, tiny.processor, settings, shard=partial(shard, precision="32-true"))
    trainer = tiny_trainer(
        folder,
        SAMPLES // PER_STEP,
        callbacks=[Ema(decay=0.5), SamplePredictions(samples=2, max_new_tokens=2)],
        devices=processes,
        strategy=ShardedStrategy() if processes > 1 else "auto",
        accumulate_grad_batches=PER_STEP // processes,
        val_check_interval=SAMPLES // 2 // processes,
    )
    trainer.fit(module, UnevenData(module.processor))
    weights = {name: tensor for name, tensor in module.state_dict().items() if name in module.names_to_save()}
    norms = {name: float(getattr(t, "full_tensor", lambda t=t: t)().norm()) for name, t in sorted(weights.items())}
    if trainer.is_global_zero:
        (folder / "norms.json").write_text(json.dumps(norms))


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
