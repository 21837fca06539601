"""The training step: a batch through steps [3] to [5] of the model, its loss, and what is worth a curve."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bimba.data.tokenize import IGNORE_INDEX
from bimba.training.optim import OptimizerSettings, build_optimizer
from bimba.training.trainable import part_of
from bimba.types import Batch, BimbaError


def answer_window(labels: Tensor) -> int:
    """How many trailing positions hold every supervised token and the position that predicts the first of them.

    Only there are logits needed: a question about 64 frames is 13,000 positions, its answer a handful, and one
    position is a row of 152,000 numbers.

    Args:
        labels: (B, L) int64, -100 = not trained on.

    Raises:
        BimbaError: no token is supervised.
    """
    supervised = (labels != IGNORE_INDEX).any(dim=0).nonzero()  # (S, 1) columns of L
    if len(supervised) == 0:
        raise BimbaError(
            f"A batch of shape {tuple(labels.shape)} has no supervised token, so there is nothing to learn from it; "
            "each conversation needs a 'gpt' turn with text."
        )
    return min(labels.shape[1], labels.shape[1] - int(supervised[0]) + 1)


class BimbaModule(L.LightningModule):
    """Trains what ``trainable.set_trainable`` freed.

    A Lightning checkpoint of it holds the trained weights only: the frozen ones come from the base again.

    Args:
        model: a ``BimbaForConditionalGeneration``.
        processor: saved next to the model by ``SaveCheckpoint``.
        optimizer: rates and schedule.
        cut_off: parts of the model that no gradient reaches, although they are trained by name
            (``ModelSettings.cuts_vision_tower_off``): several processes must not wait for theirs.
    """

    def __init__(self, model: nn.Module, processor: Any, optimizer: OptimizerSettings, cut_off: Sequence[str] = ()):
        super().__init__()
        self.model = model.train()  # from_pretrained hands models over in evaluation mode: no dropout, no checkpointing
        self.processor = processor
        self.optimizer_settings = optimizer
        self.strict_loading = False  # on_load_checkpoint compares the names, with a better message
        self._last_step_ended_s: float | None = None
        self._cut_off = {name for name, _ in self.named_parameters() if part_of(name.removeprefix("model.")) in cut_off}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, self._cut_off)

    # -- steps -------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss over supervised tokens, logits (B, K, vocabulary) and labels (B, K) of the answer window."""
        labels = batch["labels"]
        window = answer_window(labels)
        labels = labels[:, -window:]
        output = self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pixel_values_videos=batch.get("pixel_values_videos") or None,
            pixel_values_images=batch.get("pixel_values_images") or None,
            image_sizes=batch.get("image_sizes"),
            labels=labels,
            logits_to_keep=window,
            use_cache=False,
        )
        return output.loss, output.logits, labels

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        if "input_ids" not in batch:
            return self._nothing_to_learn()
        loss, _, _ = self(batch)
        if not torch.isfinite(loss):
            raise BimbaError(
                f"The loss is {loss.item()} at step {self.global_step}, so training cannot go on; lower optimizer.lr "
                f"(now {self.optimizer_settings.lr}) or raise optimizer.warmup_ratio."
            )
        size = len(batch["input_ids"])
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            if group["name"] == "base":
                self.log("train/lr", group["lr"], batch_size=size)
            elif not group["name"].endswith("_no_decay"):
                self.log(f"train/lr/{group['name']}", group["lr"], batch_size=size)
        return loss

    def _nothing_to_learn(self) -> Tensor | None:
        """The loss of a batch whose samples were all bad: no gradient, so AdamW leaves every weight as it is."""
        if self.trainer.world_size == 1:
            return None
        # The other ranks wait for this one's gradients: give zeros.
        return sum((p.sum() * 0.0 for p in self.model.parameters() if p.requires_grad), torch.zeros(()).to(self.device))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if "input_ids" not in batch:
            return
        loss, logits, labels = self(batch)
        supervised = labels[:, 1:] != IGNORE_INDEX  # (B, K-1)
        right = (logits[:, :-1].argmax(dim=-1) == labels[:, 1:]) & supervised
        # Weighted by tokens and by samples: the epoch's mean is the mean over all of them.
        tokens, samples = int(supervised.sum()), len(labels)
        options: dict[str, Any] = {"on_epoch": True, "sync_dist": True}
        self.log("val/loss", loss, prog_bar=True, batch_size=tokens, **options)
        self.log("val/accuracy", right.sum() / tokens, batch_size=tokens, **options)
        whole = (right == supervised).all(dim=1).float().mean()
        self.log("val/exact_answers", whole, prog_bar=True, batch_size=samples, **options)

    # -- what is measured on the way ---------------------------------------------------------------------------

    def on_train_start(self) -> None:
        self._last_step_ended_s = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        now_s = time.perf_counter()
        if "input_ids" in batch and self._last_step_ended_s is not None:
            tokens = batch["attention_mask"].sum()
            self.log("train/tokens_per_second", tokens / (now_s - self._last_step_ended_s), batch_size=1)
        self._last_step_ended_s = now_s

    def on_validation_end(self) -> None:
        self._last_step_ended_s = time.perf_counter()  # validation is not training time

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs the gradient norms before clipping, of everything and of each trained part."""
        norms: dict[str, list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                norms.setdefault(part_of(name), []).append(parameter.grad.norm())
        if not norms:
            return  # a batch of bad samples only
        of_part = {part: torch.stack(values).norm() for part, values in norms.items()}
        self.log("train/grad_norm", torch.stack(list(of_part.values())).norm(), batch_size=1)
        for part, norm in of_part.items():
            self.log(f"train/grad_norm/{part}", norm, batch_size=1)

    # -- Lightning's plumbing ----------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves the tensors; the bad samples are a report, and frozen, which Lightning's own transfer refuses."""
        bad = {key: value for key, value in batch.items() if key == "bad_samples"}
        tensors = {key: value for key, value in batch.items() if key != "bad_samples"}
        return {**super().transfer_batch_to_device(tensors, device, dataloader_idx), **bad}  # type: ignore[typeddict-item]

    def configure_optimizers(self) -> Any:
        total_steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = build_optimizer(self.model, self.optimizer_settings, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _trained_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = self._trained_names()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved, trained = set(checkpoint["state_dict"]), self._trained_names()
        if saved != trained:
            missing, unexpected = sorted(trained - saved), sorted(saved - trained)
            raise BimbaError(
                f"The file given as resume= belongs to another training setup: it lacks {len(missing)} trained weights "
                f"({', '.join(missing[:3]) or 'none'}) and has {len(unexpected)} that are not trained here "
                f"({', '.join(unexpected[:3]) or 'none'}). Resume with the model, model/compressor, model.tuning and "
                "model.lora of the run that wrote it (its config.yaml)."
            )
