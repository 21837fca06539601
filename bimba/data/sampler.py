"""Which sample comes next: the global order of an epoch, and each rank's part of it.

What stands at position p of the global order follows from (seed, epoch, p) alone. Ranks take turns at it, so a step
sees the same samples on any number of them, and a run that goes on needs to know only how far the order was worked off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from bimba.types import BimbaError


class EpochSampler(Sampler[int]):
    """The samples of one rank, in an order that (seed, epoch) fixes.

    Rank r takes every ``world_size``-th batch from the r-th on. Lightning, which calls ``set_epoch``, resumes an epoch
    in the order it had.

    Args:
        num_samples: size of the data set.
        multiple_of: the epoch is cut to a multiple of this; what is cut off changes with each shuffle.
        batch_size: how many samples in a row go to the same rank.
        done: how many samples of all ranks, in all epochs, a resumed run has already trained on. Asked for when the
            first epoch begins: Lightning makes its loaders before it restores its counters, and a loader with workers
            begins before Lightning has said which epoch it is.
        order: a shuffle other than the plain one: a source of chance to the indices in order.
        tells_epoch: sample i of epoch e comes as ``e * num_samples + i``, for samples that differ from epoch to epoch.
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
        batch_size: int = 1,
        done: Callable[[], int] | None = None,
        order: Callable[[np.random.Generator], np.ndarray] | None = None,
        tells_epoch: bool = False,
    ):
        self.num_samples = num_samples
        self.num_used = num_samples - num_samples % multiple_of
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batch_size = batch_size
        self.epoch = 0
        self._done = done
        self._order = order
        self._tells_epoch = tells_epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def global_order(self) -> np.ndarray:
        """The samples of all ranks in this epoch, (num_used,)."""
        order = np.arange(self.num_samples)
        if self.shuffle:
            chance = np.random.default_rng([self.seed, self.epoch])
            order = self._order(chance) if self._order is not None else chance.permutation(order)
        return order[: self.num_used]

    def __iter__(self) -> Iterator[int]:
        done, self._done = self._done, None  # only the epoch that a run begins with can be half done
        total = done() if done is not None else 0
        if total:
            self.epoch = total // self.num_used
        order = self.global_order()[total % self.num_used :]
        if self._tells_epoch:
            order = order + self.epoch * self.num_samples
        turn = np.arange(len(order)) // self.batch_size % self.world_size
        return map(int, order[turn == self.rank])

    def __len__(self) -> int:
        return self.num_used // self.world_size


class BudgetBatches(Sampler[list[int]]):
    """Batches of as many samples as fit into a number of tokens, padding included.

    Which samples share a batch is fixed for a run: those of a kind and of about equal length. An epoch shuffles the
    batches as it would shuffle samples.

    Args:
        tokens: (samples,) length of each sequence.
        kinds: (samples,) samples of different kinds never share a batch.
        budget: the most tokens of a batch: its number of samples times its longest.
        most: the most samples of a batch.
        multiple_of: the epoch is cut to a multiple of so many batches.
        seed: of which samples share a batch, and of the order of batches.
        tells_epoch: see ``EpochSampler``.
        sampler: other arguments of the ``EpochSampler`` of batches.

    Attributes:
        sampler: the order of the batches; Lightning tells it the epoch.

    Raises:
        BimbaError: a sample alone is over the budget.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        kinds: np.ndarray,
        budget: int,
        most: int,
        multiple_of: int,
        *,
        seed: int = 0,
        tells_epoch: bool = False,
        **sampler: Any,
    ):
        if (over := int((tokens > budget).sum())) > 0:
            raise BimbaError(
                f"data.max_batch_tokens is {budget}, and {over} samples are longer by themselves, the longest "
                f"{int(tokens.max())}. Raise it to that, or take fewer frames."
            )
        # Samples of equal kind and length in an order of chance: else those of one file would share batches.
        chance = np.random.default_rng([seed, 0]).permutation(len(tokens))
        self._samples = np.lexsort((chance, tokens, kinds))
        self._ends = _cut(tokens[self._samples], kinds[self._samples], budget, most)
        self._tells_epoch = tells_epoch
        self.sampler = EpochSampler(len(self._ends), multiple_of, shuffle=True, seed=seed, **sampler)

    def __iter__(self) -> Iterator[list[int]]:
        batches = iter(self.sampler)  # which may change the epoch
        first = self.sampler.epoch * len(self._samples) if self._tells_epoch else 0
        for batch in batches:
            start = self._ends[batch - 1] if batch else 0
            yield (first + self._samples[start : self._ends[batch]]).tolist()

    def __len__(self) -> int:
        return len(self.sampler)


def _cut(tokens: np.ndarray, kinds: np.ndarray, budget: int, most: int) -> np.ndarray:
    """Where batches end, for samples that are sorted by kind and length."""
    ends = []
    start = 0
    for position, (length, kind) in enumerate(zip(tokens.tolist(), kinds.tolist())):
        count = position - start
        if count and (count == most or (count + 1) * length > budget or kind != kinds[start]):
            ends.append(position)
            start = position
    return np.array([*ends, len(tokens)])
