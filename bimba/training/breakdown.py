"""The training loss of each data source, and of each kind of medium."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from bimba.training.loss import Scores
from bimba.training.reporting import PeriodicCallback, gathered, report
from bimba.types import Batch


def loss_by_sample(scores: Scores, batch_size: int) -> tuple[Tensor, Tensor]:
    """What each sample adds to the loss.

    Returns:
        (B,) float32, the sum over the sample's supervised tokens; (B,) int64, how many they are.
    """
    sums = torch.zeros(batch_size, device=scores.losses.device)
    return sums.index_add(0, scores.samples, scores.losses.detach()), scores.samples.bincount(minlength=batch_size)


class LossBySource(PeriodicCallback):
    """Logs ``loss_by_source/<source>`` and ``loss_by_modality/<modality>``, means over tokens since the last report.

    Sources are the rows' ``data_source``; a modality is video, image, multi_image or text: the keys ``sources`` and
    ``modalities`` of a batch. Costs one collective of a few kilobytes per report; the losses are there anyway.
    """

    def __init__(self, every_n_steps: int | None = 10):
        super().__init__(every_n_steps)
        self._pending: list[tuple[list[str], Tensor, Tensor]] = []
        self._scored: tuple[Tensor, Tensor] | None = None
        self._hook: RemovableHandle | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.every_n_steps is not None:
            self._hook = pl_module.register_forward_hook(self._keep)

    def _keep(self, module: Any, arguments: Any, output: Any) -> None:
        if module.training and isinstance(output, Scores):  # else training_step's, which DDP calls in forward's place
            self._scored = loss_by_sample(output, len(arguments[0]["input_ids"]))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        scored, self._scored = self._scored, None
        if scored is not None:
            # Copied to the CPU when it is reported: now, it would wait for the GPU.
            self._pending.extend((keys, *scored) for keys in _keys_of(batch))
        if self.is_due(trainer):
            report(trainer, _means(gathered(trainer, self._totals())))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _totals(self) -> dict[str, tuple[float, int]]:
        """Of each key, the sum of losses and the number of tokens since the last report."""
        totals: dict[str, tuple[float, int]] = {}
        for keys, losses, tokens in self._pending:
            for key, loss, count in zip(keys, losses.tolist(), tokens.tolist(), strict=True):
                before = totals.get(key, (0.0, 0))
                totals[key] = (before[0] + loss, before[1] + count)
        self._pending = []
        return totals


def _keys_of(batch: Batch) -> Iterator[list[str]]:
    """The key of each sample under which its loss is counted, for both ways to count."""
    for field, name in (("sources", "source"), ("modalities", "modality")):
        labels = batch.get(field)
        if labels:
            yield [f"loss_by_{name}/{label or 'unknown'}" for label in labels]  # type: ignore[attr-defined]


def _means(totals: list[dict[str, tuple[float, int]]]) -> dict[str, float]:
    sums: dict[str, tuple[float, int]] = {}
    for of_rank in totals:
        for key, (loss, count) in of_rank.items():
            before = sums.get(key, (0.0, 0))
            sums[key] = (before[0] + loss, before[1] + count)
    return {key: loss / count for key, (loss, count) in sorted(sums.items()) if count}
