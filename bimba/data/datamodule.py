"""Data loaders for training: shuffled by seed and epoch alone, a validation slice kept out of training."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from bimba.data.collate import collate
from bimba.data.dataset import TooLong, VideoQADataset
from bimba.data.isolated import read_videos_with
from bimba.data.lengths import Processor
from bimba.data.mixture import Mixture, read_mixture
from bimba.data.order import by_length, by_modality_and_length
from bimba.data.packed import Packed, check_litdata
from bimba.data.recipe import recipe_named
from bimba.data.sampler import BudgetBatches, EpochSampler
from bimba.data.workers import outlive_signals, own_chance
from bimba.types import BadSample, Batch, BimbaError, ShortVideos

log = logging.getLogger(__name__)

_VALIDATION_SEED = 0  # which samples are held out must not depend on the seed of a run, or runs could not be compared
SampleOrder = Literal["shuffled", "by_length", "by_modality_and_length"]
_ORDERS = {"by_length": by_length, "by_modality_and_length": by_modality_and_length}


class VideoQADataModule(L.LightningDataModule):
    """Training and validation batches from annotations in LLaVA's format.

    Args:
        annotations, video_folder, processor, num_frames, max_length, short_videos, too_long: see ``VideoQADataset``.
        global_batch_size: samples per optimizer step over all ranks; each epoch is cut to a multiple of it.
        batch_size: samples per rank and forward pass.
        num_workers: processes that read videos, per rank; 0 reads them in the training process.
        val_samples: how many samples are held out for validation; 0 for none.
        seed: of the shuffle.
        video_backend, decode_deadline_s, isolate_decoding: see ``isolated.read_videos_with``; they hold for this
            process and all that it starts.
        prepare: writes the files if they are not there yet, such as ``needle_files.generate_splits``; called once.
        recipe: "default" or "original", see ``bimba.data.recipe``.
        sample_order: "shuffled"; "by_length": the samples of a step are dealt to its batches so that these are of about
            equal length; "by_modality_and_length": and samples with and without a medium never share a step. None: as
            the recipe says, whose "by_length" is the last.
        max_batch_tokens: batches are of as many samples as fit into so many tokens, at most ``batch_size``; a step then
            has at most ``global_batch_size``. Lengths are estimates. None: ``batch_size`` samples always.
        bad_rows: malformed rows are an "error", or "skip" leaves them out.
        duplicate_ids: that two rows of a file have the same id is an "error", or "allow" keeps both.
    """

    def __init__(
        self,
        annotations: str | Mixture | Packed,
        video_folder: str | None,
        processor: Processor,
        num_frames: int,
        max_length: int,
        global_batch_size: int,
        batch_size: int,
        num_workers: int = 0,
        val_samples: int = 0,
        seed: int = 0,
        video_backend: str | None = None,
        decode_deadline_s: float | None = None,
        isolate_decoding: bool | None = None,
        short_videos: ShortVideos | None = None,
        prepare: Callable[[], object] | None = None,
        recipe: str = "default",
        sample_order: SampleOrder | None = None,
        max_batch_tokens: int | None = None,
        too_long: TooLong = "skip",
        bad_rows: Literal["error", "skip"] = "error",
        duplicate_ids: Literal["error", "allow"] = "error",
    ):
        super().__init__()
        read_videos_with(video_backend, decode_deadline_s, isolate_decoding)
        pad_token_id = processor.tokenizer.pad_token_id
        if pad_token_id is None:
            raise BimbaError("The tokenizer has no pad token; set tokenizer.pad_token (Qwen2's is <|endoftext|>).")
        self.recipe = recipe_named(recipe)
        if sample_order is None:
            sample_order = "by_modality_and_length" if self.recipe.sample_order == "by_length" else "shuffled"
        for key, value, expected in (  # before files are made or looked for
            ("short_videos", self.recipe.short_videos if short_videos is None else short_videos, get_args(ShortVideos)),
            ("too_long", too_long, get_args(TooLong)),
            ("sample_order", sample_order, get_args(SampleOrder)),
            ("bad_rows", bad_rows, ("error", "skip")),
            ("duplicate_ids", duplicate_ids, ("error", "allow")),
        ):
            if value not in expected:
                raise BimbaError(f"data.{key} is {value!r}; expected one of {', '.join(expected)}.")
        for key, number, least in (
            ("num_frames", num_frames, 1),
            ("max_length", max_length, 1),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("val_samples", val_samples, 0),
        ):
            if number < least:
                raise BimbaError(f"data.{key} is {number}; expected {least} or more.")
        self._open = partial(
            VideoQADataset,
            annotations,
            video_folder,
            processor,
            num_frames,
            max_length,
            self.recipe,
            short_videos,
            too_long,
            skip_bad_rows=bad_rows == "skip",
            allow_duplicate_ids=duplicate_ids == "allow",
        )
        self._collate = partial(collate, pad_token_id=pad_token_id)
        self.annotations = annotations if isinstance(annotations, str) else annotations.name
        self.global_batch_size = global_batch_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.val_samples = val_samples
        self.seed = seed
        self.prepare = prepare
        self.sample_order = sample_order
        self.max_batch_tokens = max_batch_tokens

    def prepare_data(self) -> None:
        if self.prepare is not None:
            self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Opens the annotations and holds out the validation samples.

        Raises:
            BimbaError: a malformed file, too few samples for one optimizer step, or fewer validation samples than
                processes.
        """
        self._check_validation()
        dataset = self._open()
        num_train = len(dataset) - self.val_samples
        if num_train < self.global_batch_size:
            raise BimbaError(
                f"{self.annotations}: {len(dataset)} samples, of which {self.val_samples} (data.val_samples) are held "
                f"out, leave too few for one step of {self.global_batch_size} (data.global_batch_size). Lower one of "
                "the two."
            )
        order = np.random.default_rng(_VALIDATION_SEED).permutation(len(dataset))
        # Numbers of numpy's: a list of a million objects would be copied into every worker.
        self._train_indices = np.sort(order[self.val_samples :])
        self.dataset = dataset
        self.train_set = _OfEpochs(dataset, self._train_indices)
        self.val_set = Subset(dataset, np.sort(order[: self.val_samples]))  # type: ignore[arg-type]

    def _check_validation(self) -> None:
        """Every process validates as many samples as the others: what does not come out even is left out."""
        if 0 < self.val_samples < self._world_size:
            raise BimbaError(
                f"data.val_samples is {self.val_samples}, and there are {self._world_size} processes: not one "
                f"for each. Give data.val_samples={self._world_size} or a multiple of it, or 0 for no validation."
            )
        if self._rank == 0 and (cut := self.val_samples % self._world_size):
            log.warning(
                "%d of the %d validation samples (data.val_samples) are left out, so that each of %d processes has "
                "as many as the others.", cut, self.val_samples, self._world_size,
            )  # fmt: skip

    def open_anyway(self) -> VideoQADataset:
        """The annotations with whatever is wrong with them, for who looks into that."""
        return self._open(skip_bad_rows=True, allow_duplicate_ids=True, empty_allowed=True)

    def train_dataloader(self) -> DataLoader[Batch]:
        if self.max_batch_tokens is not None:
            return self._loader(self.train_set, batch_sampler=self._budget_batches(self.max_batch_tokens))
        sampler = EpochSampler(
            len(self.train_set),
            self.global_batch_size,
            shuffle=True,
            seed=self.seed,
            rank=self._rank,
            world_size=self._world_size,
            batch_size=self.batch_size,
            done=self._done,
            order=self._ordered if self.sample_order in _ORDERS else None,
            tells_epoch=self.recipe.instruction_repeats,
        )
        return self._loader(self.train_set, batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        if not self.val_samples:
            return []
        sampler = EpochSampler(
            len(self.val_set), self._world_size, shuffle=False, rank=self._rank, world_size=self._world_size
        )
        return self._loader(self.val_set, batch_size=self.batch_size, sampler=sampler)

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    def _done(self) -> int:
        """Samples of all ranks that the run's steps have used."""
        return self._batches_done() * self.batch_size

    def _batches_done(self) -> int:
        """Batches of all ranks that the run's steps have used."""
        if self.trainer is None:
            return 0
        return self.trainer.global_step * self.trainer.accumulate_grad_batches * self._world_size

    def _ordered(self, chance: np.random.Generator) -> np.ndarray:
        """The training samples in whole steps, batch by batch."""
        generator = torch.Generator().manual_seed(int(chance.integers(2**63)))
        lengths = self.dataset.lengths[self._train_indices]
        if self.sample_order == "by_length":
            lengths = np.abs(lengths)
        num_batches = self.global_batch_size // self.batch_size
        return np.array(_ORDERS[self.sample_order](lengths.tolist(), self.batch_size, num_batches, generator))

    def _budget_batches(self, budget: int) -> BudgetBatches:
        return BudgetBatches(
            self.dataset.estimated_tokens()[self._train_indices],
            self.dataset.modalities[self._train_indices],
            budget,
            self.batch_size,
            self.global_batch_size // self.batch_size,
            seed=self.seed,
            rank=self._rank,
            world_size=self._world_size,
            done=self._batches_done,
            tells_epoch=self.recipe.instruction_repeats,
        )

    def _loader(self, samples: Dataset[Any], **batches: Any) -> DataLoader[Batch]:
        return DataLoader(
            samples,
            num_workers=self.num_workers,
            collate_fn=self._collate,
            worker_init_fn=outlive_signals,
            generator=own_chance(self.seed),
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **batches,
        )


class _OfEpochs(Dataset[dict[str, Any] | BadSample]):
    """Some samples of a data set, in every epoch: sample i of epoch e is number ``e * len(self) + i``.

    Which epoch it is comes with the number, as the workers that read live on, and others may go on with a run.
    """

    def __init__(self, dataset: VideoQADataset, indices: np.ndarray):
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[dict[str, Any] | BadSample]:
        """Those of the first epoch: numbers alone would never end."""
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> dict[str, Any] | BadSample:
        if number < 0:
            raise IndexError(f"Sample {number} was asked for; they are counted from 0.")
        epoch, position = divmod(number, len(self))
        return self.dataset.sample(self.indices[position], epoch)


def mixture_data(
    mixture: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
    video_root: str | None = None,
    image_root: str | None = None,
    annotation_root: str | None = None,
    **options: Any,
) -> VideoQADataModule:
    """The data module of a mixture.

    Args:
        mixture, video_root, image_root, annotation_root: see ``mixture.read_mixture``.
        options: the other arguments of :class:`VideoQADataModule`.
    """
    return VideoQADataModule(read_mixture(mixture, video_root, image_root, annotation_root), None, **options)


def streamed_data(source: str, streaming: str = "litdata", **options: Any) -> VideoQADataModule:
    """The data module of what ``bimba data pack`` wrote.

    Args:
        source: a folder, or an address in an object store.
        streaming: who reads it; there is only "litdata".
        options: the other arguments of :class:`VideoQADataModule`.

    Raises:
        BimbaError: another reader, or litdata is not installed.
    """
    if streaming != "litdata":
        raise BimbaError(f"data.streaming is {streaming!r}; expected litdata.")
    check_litdata()
    return VideoQADataModule(Packed(str(source)), None, **options)
