from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from bimba.data.datamodule import VideoQADataModule
from bimba.data.needle import NeedleConfig
from bimba.data.needle_files import EQUAL_TASKS, generate
from bimba.data.sampler import BudgetBatches, EpochSampler
from bimba.types import BimbaError
from tests.data.files import TINY_CLIP

NUM_CLIPS = 14


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("needle")
    generate(folder, "train", NUM_CLIPS, TINY_CLIP, workers=1)
    return folder


@pytest.fixture
def make(root, processor):
    def data_module(**changes: Any) -> VideoQADataModule:
        options: dict[str, Any] = {
            "annotations": str(root / "train" / "annotations.json"), "video_folder": str(root / "train"),
            "processor": processor, "num_frames": 4, "max_length": 600, "global_batch_size": 4, "batch_size": 2,
            "val_samples": 3, "seed": 7,
        }  # fmt: skip
        return VideoQADataModule(**{**options, **changes})

    return data_module


def order(sampler: EpochSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_order_is_a_function_of_seed_and_epoch():
    sampler = EpochSampler(100, 8, shuffle=True, seed=1)
    first, second = order(sampler, 0), order(sampler, 1)
    assert first != second
    assert first != sorted(first)
    assert order(EpochSampler(100, 8, shuffle=True, seed=1), 1) == second
    assert order(EpochSampler(100, 8, shuffle=True, seed=2), 0) != first
    assert len(first) == len(set(first)) == len(sampler) == 96
    assert set(first) != set(second)  # another four are left out
    assert order(EpochSampler(10, 3, shuffle=False), 5) == list(range(9))


@pytest.mark.parametrize("world_size", [2, 4])
def test_each_step_sees_the_same_samples_on_any_number_of_ranks(world_size):
    alone = order(EpochSampler(100, 8, shuffle=True), 3)
    ranks = [order(EpochSampler(100, 8, shuffle=True, rank=r, world_size=world_size), 3) for r in range(world_size)]
    per_rank = 8 // world_size
    for step in range(len(alone) // 8):
        together = [i for rank in ranks for i in rank[step * per_rank : (step + 1) * per_rank]]
        assert sorted(together) == sorted(alone[step * 8 : (step + 1) * 8])
    assert {len(rank) for rank in ranks} == {len(alone) // world_size}


def test_what_stands_where_is_the_same_for_any_number_of_ranks():
    """The ranks' batches, taken in turn, are the order of one rank; and so from any place on."""
    for done in (0, 24):
        alone = list(EpochSampler(100, 8, shuffle=True, seed=4, batch_size=2, done=lambda: done))  # noqa: B023
        for world_size in (2, 4):
            ranks = [
                list(EpochSampler(
                    100, 8, shuffle=True, seed=4, rank=r, world_size=world_size, batch_size=2, done=lambda: done,  # noqa: B023
                ))
                for r in range(world_size)
            ]  # fmt: skip
            in_turn = [rank[start : start + 2] for start in range(0, len(ranks[0]), 2) for rank in ranks]
            assert [i for batch in in_turn for i in batch] == alone
    assert alone == order(EpochSampler(100, 8, shuffle=True, seed=4), 0)[24:]


def test_so_it_is_for_batches_of_a_budget():
    tokens, kinds = np.random.default_rng(0).integers(5, 50, 200), np.repeat([0, 1], 100)

    def sampler(rank: int = 0, world_size: int = 1, done: int = 0) -> BudgetBatches:
        return BudgetBatches(tokens, kinds, 120, 8, 4, seed=1, rank=rank, world_size=world_size, done=lambda: done)

    alone = list(sampler())
    assert len(alone) == len(sampler()) == sampler().sampler.num_used
    ranks = [list(sampler(rank, 2)) for rank in (0, 1)]
    assert [batch for pair in zip(*ranks, strict=True) for batch in pair] == alone
    resumed = sampler(done=12)
    assert list(resumed) == alone[12:]
    resumed.sampler.set_epoch(1)
    assert len(list(resumed)) == len(alone)
    assert all(len(batch) * tokens[batch].max() <= 120 and len(set(kinds[batch])) == 1 for batch in alone)
    spent = sum(len(batch) * tokens[batch].max() for batch in alone)
    assert spent > 0.75 * 120 * len(alone)  # batches are nearly full


def batches(data: VideoQADataModule, epoch: int = 0) -> list[dict[str, Any]]:
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_batches(make):
    found = batches(make())
    assert len(found) == 4  # 14 clips, 3 held out, cut to two steps of 4
    for batch in found:
        assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
        assert len(batch["input_ids"]) == 2
        assert [tuple(v.shape) for v in batch["pixel_values_videos"]] == [(4, 3, 16, 16)] * 2
        assert batch["bad_samples"] == []


def equal(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return all(
        torch.equal(a["input_ids"], b["input_ids"])
        and all(torch.equal(v, w) for v, w in zip(a["pixel_values_videos"], b["pixel_values_videos"], strict=True))
        for a, b in zip(one, other, strict=True)
    )


def test_workers_give_the_same_batches(make):
    alone = make()
    workers = make(num_workers=2)
    first = batches(alone)
    workers.setup("fit")
    loader = workers.train_dataloader()
    assert equal(list(loader), first)
    loader.sampler.set_epoch(1)  # the same worker processes go on
    assert equal(list(loader), batches(alone, epoch=1))
    assert not equal(batches(alone, epoch=1), first)


def test_validation_samples_are_held_out(make):
    data = make()
    data.setup("fit")
    train, val = set(data.train_set.indices), set(data.val_set.indices)
    assert len(val) == 3
    assert not train & val
    assert train | val == set(range(NUM_CLIPS))
    val_batches = list(data.val_dataloader())
    assert [len(b["input_ids"]) for b in val_batches] == [2, 1]
    other_seed = make(seed=8)
    other_seed.setup("fit")
    assert list(other_seed.val_set.indices) == list(data.val_set.indices)
    assert make(val_samples=0).val_dataloader() == []


def test_validation_samples_of_the_original_stay_as_they_are(make):
    data = make(recipe="original", max_length=2000)
    data.setup("fit")
    loader = data.val_dataloader()
    assert equal(list(loader), list(loader))


def test_bad_videos_are_listed_not_replaced(make, root, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in (root / "train" / "videos").iterdir():
        (videos / path.name).symlink_to(path)
    for name in ("000002.mp4", "000005.mp4"):
        (videos / name).unlink()
        (videos / name).write_text("damaged")
    data = make(video_folder=str(tmp_path), val_samples=0, global_batch_size=NUM_CLIPS, batch_size=1)
    found = batches(data)
    bad = [sample for batch in found for sample in batch["bad_samples"]]
    assert sorted(Path(sample.path).name for sample in bad) == ["000002.mp4", "000005.mp4"]
    assert all("not a media file" in sample.error for sample in bad)
    assert sum(len(batch["input_ids"]) for batch in found if "input_ids" in batch) == NUM_CLIPS - 2


def test_short_videos_are_listed_unless_frames_may_repeat(make):
    found = batches(make(num_frames=TINY_CLIP.num_video_frames + 1))
    assert all(set(batch) == {"bad_samples"} and len(batch["bad_samples"]) == 2 for batch in found)
    found = batches(make(num_frames=TINY_CLIP.num_video_frames + 1, short_videos="repeat"))
    assert all(batch["bad_samples"] == [] and len(batch["input_ids"]) == 2 for batch in found)


def test_sequences_over_the_limit_are_bad_samples(make):
    found = batches(make(max_length=50))
    assert all(set(batch) == {"bad_samples"} and len(batch["bad_samples"]) == 2 for batch in found)


def test_too_few_samples(make):
    with pytest.raises(BimbaError, match=r"14 samples, of which 3 .* one step of 12 \(data\.global_batch_size\)"):
        make(global_batch_size=12).setup("fit")


class Processes:
    """What the data module asks a trainer of several processes for."""

    def __init__(self, world_size: int) -> None:
        self.world_size, self.global_rank = world_size, 0


def test_fewer_validation_samples_than_processes(make):
    data = make(val_samples=3)
    data.trainer = Processes(4)
    with pytest.raises(BimbaError, match=r"data\.val_samples is 3, and there are 4 processes"):
        data.setup("fit")


def test_validation_samples_that_do_not_come_out_even_are_counted(make, caplog):
    data = make(val_samples=3)
    data.trainer = Processes(2)
    data.setup("fit")
    assert len(data.val_dataloader()) == 1
    assert "1 of the 3 validation samples" in caplog.text


def test_no_pad_token(make, processor):
    class Tokenizer:
        pad_token_id = None

    class Processor:
        tokenizer = Tokenizer()

    with pytest.raises(BimbaError, match="no pad token"):
        make(processor=Processor())


class Recorder(L.LightningModule):
    """Learns nothing and notes which samples it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.shown: list[tuple[int, list[int]]] = []

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        sums = [
            int(ids.sum()) + int(labels.sum()) + round(1e4 * float(v.sum()))
            for ids, labels, v in zip(batch["input_ids"], batch["labels"], batch["pixel_values_videos"], strict=True)
        ]
        self.shown.append((self.current_epoch, sums))
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: VideoQADataModule, max_epochs: int, folder: Path, resume: Path | None = None) -> tuple[list, Path]:
    module = Recorder()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=max_epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, accumulate_grad_batches=2, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module.shown, folder / "last.ckpt"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_batch_tokens": 1000},
        {"recipe": "original", "max_length": 2000},  # whose samples differ from epoch to epoch
        {"recipe": "original", "max_length": 2000, "num_workers": 2},
        {"recipe": "original", "max_length": 2000, "max_batch_tokens": 1000},
    ],
)
def test_a_resumed_run_goes_on_in_the_same_order(make, tmp_path, changes):
    whole, _ = fit(make(**changes), 3, tmp_path)
    per_epoch = len(whole) // 3
    assert per_epoch >= 4
    assert [epoch for epoch, _ in whole] == [0] * per_epoch + [1] * per_epoch + [2] * per_epoch
    assert whole[:per_epoch] != [(0, sums) for _, sums in whole[per_epoch : 2 * per_epoch]]
    first, checkpoint = fit(make(**changes), 1, tmp_path)
    rest, _ = fit(make(**changes), 3, tmp_path, resume=checkpoint)
    assert first + rest == whole


def test_training_samples_can_be_gone_through(make):
    data = make()
    data.setup("fit")
    assert len(list(data.train_set)) == len(data.train_set)
    with pytest.raises(IndexError, match="-1"):
        data.train_set[-1]


def needle_node(data_dir: Path) -> Any:
    """conf/data/needle.yaml with the nodes that it refers to."""
    file = Path(__file__).parents[2] / "conf" / "data" / "needle.yaml"
    return OmegaConf.create(
        {
            "data": OmegaConf.load(file),
            "paths": {"data_dir": str(data_dir)},
            "model": {"config": {"num_frames": 4, "text_config": {"max_position_embeddings": 600}}},
            "seed": 5,
        }
    )


def test_configuration_has_the_defaults_of_the_code():
    """So that ``generate`` called without a configuration means the same folder."""
    prepare = OmegaConf.to_container(needle_node(Path("x")), resolve=True)["data"]["prepare"]
    config = prepare["config"]
    assert config.pop("_target_") == "bimba.data.needle.NeedleConfig"
    assert config == {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(NeedleConfig()).items()}
    assert set(prepare["tasks"]) == set(EQUAL_TASKS)


@pytest.mark.filterwarnings("ignore")
def test_first_use_from_the_configuration_writes_the_data(tmp_path, processor):
    node = needle_node(tmp_path)
    node.data.prepare.num_clips = {"train": 6, "test": 1}
    node.data.prepare.workers = 1
    node.data.prepare.config = {"_target_": "bimba.data.needle.NeedleConfig", **asdict(TINY_CLIP)}
    node.data.merge_with({"global_batch_size": 4, "batch_size": 2, "val_samples": 2, "num_workers": 0})
    data = instantiate(node.data, processor=processor, _convert_="all")
    assert isinstance(data.prepare, partial)
    assert not (tmp_path / "needle").exists()
    shown, _ = fit(data, 1, tmp_path)
    assert len(shown) == 2
    for split, count in (("train", 6), ("test", 1)):
        assert (tmp_path / "needle" / split / "annotations.json").is_file()
        assert len(list((tmp_path / "needle" / split / "videos").iterdir())) == count
