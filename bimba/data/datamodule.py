"""Data loaders for training: shuffled by seed and epoch alone, a validation slice kept out of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from bimba.data.collate import collate
from bimba.data.dataset import Processor, VideoQADataset
from bimba.data.order import by_modality_and_length
from bimba.data.recipe import recipe_named
from bimba.types import Batch, BimbaError, ShortVideos

_VALIDATION_SEED = 0  # which samples are held out must not depend on the seed of a run, or runs could not be compared


class EpochSampler(Sampler[int]):
    """The samples of one rank, in an order that (seed, epoch) fixes.

    Rank r takes every ``world_size``-th sample from the r-th on. So the samples of an optimizer step are the same for
    any number of ranks. Lightning, which calls ``set_epoch``, resumes an epoch in the order it had.

    Args:
        num_samples: size of the data set.
        multiple_of: the epoch is cut to a multiple of this; what is cut off changes with each shuffle.
        done: how many samples of this rank a resumed run has already trained on in its first epoch. Asked for when
            that epoch begins: Lightning makes its loaders before it restores its counters.
        order: a shuffle other than the plain one: a source of chance to the indices in order.
    """

    def __init__(
        self,
        num_samples: int,
        multiple_of: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        done: Callable[[], int] | None = None,
        order: Callable[[np.random.Generator], np.ndarray] | None = None,
    ):
        self.num_samples = num_samples
        self.num_used = num_samples - num_samples % multiple_of
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._done = done
        self._order = order

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self.num_samples)
        if self.shuffle:
            chance = np.random.default_rng([self.seed, self.epoch])
            order = self._order(chance) if self._order is not None else chance.permutation(order)
        mine = order[: self.num_used][self.rank :: self.world_size].tolist()
        done, self._done = self._done, None  # only the epoch that a run begins with can be half done
        return iter(mine[done() if done is not None else 0 :])

    def __len__(self) -> int:
        return self.num_used // self.world_size


class VideoQADataModule(L.LightningDataModule):
    """Training and validation batches from one annotation file in LLaVA-Video-178K's format.

    Args:
        annotations, video_folder, processor, num_frames, max_length, short_videos: see ``VideoQADataset``.
        global_batch_size: samples per optimizer step over all ranks; each epoch is cut to a multiple of it.
        batch_size: samples per rank and forward pass.
        num_workers: processes that read videos, per rank; 0 reads them in the training process.
        val_samples: how many samples are held out for validation; 0 for none.
        seed: of the shuffle.
        prepare: writes the files if they are not there yet, such as ``needle_files.generate_splits``; called once.
        recipe: "default" or "original", see ``bimba.data.recipe``.
    """

    def __init__(
        self,
        annotations: str,
        video_folder: str,
        processor: Processor,
        num_frames: int,
        max_length: int,
        global_batch_size: int,
        batch_size: int,
        num_workers: int = 0,
        val_samples: int = 0,
        seed: int = 0,
        short_videos: ShortVideos | None = None,
        prepare: Callable[[], object] | None = None,
        recipe: str = "default",
    ):
        super().__init__()
        pad_token_id = processor.tokenizer.pad_token_id
        if pad_token_id is None:
            raise BimbaError("The tokenizer has no pad token; set tokenizer.pad_token (Qwen2's is <|endoftext|>).")
        self.recipe = recipe_named(recipe)
        self._open = partial(
            VideoQADataset, annotations, video_folder, processor, num_frames, max_length, self.recipe, short_videos
        )
        self._collate = partial(collate, pad_token_id=pad_token_id)
        self.annotations = annotations
        self.global_batch_size = global_batch_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.val_samples = val_samples
        self.seed = seed
        self.prepare = prepare

    def prepare_data(self) -> None:
        if self.prepare is not None:
            self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Opens the annotations and holds out the validation samples.

        Raises:
            BimbaError: a malformed file, or too few samples for one optimizer step.
        """
        dataset = self._open()
        num_train = len(dataset) - self.val_samples
        if num_train < self.global_batch_size:
            raise BimbaError(
                f"{self.annotations}: {len(dataset)} samples, of which {self.val_samples} (data.val_samples) are held "
                f"out, leave too few for one step of {self.global_batch_size} (data.global_batch_size). Lower one of "
                "the two."
            )
        order = np.random.default_rng(_VALIDATION_SEED).permutation(len(dataset)).tolist()
        self.train_set = Subset(dataset, sorted(order[self.val_samples :]))
        self._train_lengths = dataset.lengths[self.train_set.indices].tolist()
        self.val_set = Subset(dataset, sorted(order[: self.val_samples]))

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.train_set, shuffle=True, multiple_of=self.global_batch_size)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        if not self.val_samples:
            return []
        return self._loader(self.val_set, shuffle=False, multiple_of=self._world_size)

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _done(self) -> int:
        """Samples of this rank that the steps of an interrupted epoch have used."""
        if self.trainer is None:
            return 0
        samples = self.trainer.global_step * self.trainer.accumulate_grad_batches * self.batch_size
        per_epoch = (len(self.train_set) // self.global_batch_size) * self.global_batch_size // self._world_size
        return samples % per_epoch

    def _by_length(self, chance: np.random.Generator) -> np.ndarray:
        """Whole steps of (batches, ranks, samples), written so that the sampler's dealing keeps batches together."""
        generator = torch.Generator().manual_seed(int(chance.integers(2**63)))
        num_batches = self.global_batch_size // self.batch_size
        order = by_modality_and_length(self._train_lengths, self.batch_size, num_batches, generator)
        whole_steps = np.array(order[: len(order) - len(order) % self.global_batch_size])
        return whole_steps.reshape(-1, self._world_size, self.batch_size).swapaxes(1, 2).ravel()

    def _loader(self, samples: Dataset[Any], *, shuffle: bool, multiple_of: int) -> DataLoader[Batch]:
        sampler = EpochSampler(
            len(samples),  # type: ignore[arg-type]  # a Subset
            multiple_of,
            shuffle=shuffle,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer is not None else 0,
            world_size=self._world_size,
            done=self._done if shuffle else None,
            order=self._by_length if shuffle and self.recipe.sample_order == "by_length" else None,
        )
        return DataLoader(
            samples,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=self._collate,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
