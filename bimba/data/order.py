"""The order of samples in which the released weights were trained: the batches of a step are of about equal length.

Which samples share an optimizer step is drawn at random; within a step they are dealt to its batches by their number of
words. Samples with and without a medium never share a step, but for one at the end of the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

import torch


def by_length(
    lengths: Sequence[int], batch_size: int, num_batches: int, generator: torch.Generator | None = None
) -> list[int]:
    """A random order in which the samples of each step are dealt to its batches by length.

    Args:
        lengths: of the samples, in words.
        batch_size: samples per batch.
        num_batches: batches per optimizer step, over all ranks.
        generator: source of chance; None: torch's own.

    Returns:
        Every index once: the batches of the first step one after the other, then those of the second.
    """
    order: list[int] = []
    for step in _cut(torch.randperm(len(lengths), generator=generator).tolist(), batch_size * num_batches):
        longest_first = sorted(step, key=lambda index: lengths[index], reverse=True)
        order += [index for batch in _deal(longest_first, lengths, num_batches) for index in batch]
    return order


def by_modality_and_length(
    lengths: Sequence[int], batch_size: int, num_batches: int, generator: torch.Generator | None = None
) -> list[int]:
    """Like :func:`by_length`, with steps of samples that all have a medium or all have none.

    Args:
        lengths: of the samples, in words; negative for those without a medium.
    """
    groups = [[i for i, n in enumerate(lengths) if n > 0], [i for i, n in enumerate(lengths) if n <= 0]]
    if not all(groups):
        return by_length([abs(n) for n in lengths], batch_size, num_batches, generator)
    steps: list[list[int]] = []
    rest: list[int] = []
    for group in groups:
        order = by_length([abs(lengths[i]) for i in group], batch_size, num_batches, generator)
        *whole, last = _cut([group[i] for i in order], batch_size * num_batches)
        steps += whole
        rest += last  # even when it fills a step
    shuffled = [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
    return [index for step in [*shuffled, sorted(rest)] for index in step]


def _cut(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _deal(longest_first: list[int], lengths: Sequence[int], num_batches: int) -> list[list[int]]:
    """Each sample goes to the batch that is shortest so far and not yet full; an incomplete step is dealt in turn."""
    size, incomplete = divmod(len(longest_first), num_batches)
    if incomplete:
        return [longest_first[first::num_batches] for first in range(num_batches)]
    batches: list[list[int]] = [[] for _ in range(num_batches)]
    open_batches = [(0, b) for b in range(num_batches)]  # a heap: words so far, and which batch
    for index in longest_first:
        words, shortest = heappop(open_batches)
        batches[shortest].append(index)
        if len(batches[shortest]) < size:
            heappush(open_batches, (words + lengths[index], shortest))
    return batches
