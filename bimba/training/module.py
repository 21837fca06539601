"""The training step: a batch through steps [3] to [5] of the model, its loss, and what is worth a curve."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bimba.data.tokenize import IGNORE_INDEX
from bimba.model.vision import patch_features
from bimba.training.loss import Scores, ValidationSums, score, validation_sums
from bimba.training.optim import OptimizerSettings, build_optimizer
from bimba.training.parallel import ShardedStrategy
from bimba.training.resume import check_names, count_batches_anew, warn_of_another_base
from bimba.training.totals import Step, StepTotals, drop_gradients, scale_gradients, sum_over_processes
from bimba.training.trainable import part_of
from bimba.types import Batch, BimbaError

log = logging.getLogger(__name__)


class BimbaModule(L.LightningModule):
    """Trains what ``trainable.set_trainable`` freed.

    A Lightning checkpoint of it holds the trained weights only: the frozen ones come from the base again.

    Args:
        model: a ``BimbaForConditionalGeneration``.
        processor: saved next to the model by ``SaveCheckpoint``.
        optimizer: rates and schedule.
        cut_off: parts of the model that no gradient reaches, although they are trained by name
            (``ModelSettings.cuts_vision_tower_off``): several processes must not wait for theirs.
        loss_mean: what an optimizer step's loss is the mean of, see ``bimba.data.recipe``: "tokens" gives the same for
            any split of the step into batches and processes.
        base: the checkpoint that the frozen weights come from; written into Lightning checkpoints.
        save_frozen: Lightning checkpoints hold the frozen weights too.
        shard: with ``trainer=fsdp``, deals the weights out over the processes; called once these know each other.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        optimizer: OptimizerSettings,
        cut_off: Sequence[str] = (),
        *,
        loss_mean: Literal["tokens", "batches"] = "tokens",
        base: str | None = None,
        save_frozen: bool = False,
        shard: Callable[[BimbaModule, ShardedStrategy], None] | None = None,
    ):
        super().__init__()
        self.model = model.train()  # from_pretrained hands models over in evaluation mode: no dropout, no checkpointing
        self.processor = processor
        self.optimizer_settings = optimizer
        self.loss_mean = loss_mean
        self.base = base
        self.save_frozen = save_frozen
        self.strict_loading = False  # on_load_checkpoint compares the names, with a better message
        self._shard = shard
        self._last_step_ended_s: float | None = None
        self._totals = StepTotals()
        self._step: Step | None = None
        self._skipped = self._skipped_in_a_row = 0
        self._cut_off = {name for name, _ in self.named_parameters() if part_of(name.removeprefix("model.")) in cut_off}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, self._cut_off)

    # -- steps -------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Scores:
        """The scores of the supervised tokens. The whole model runs, whatever media the batch has."""
        model: Any = self.model
        videos, images, nothing = self._encode(batch)
        inputs_embeds = model.embed(batch["input_ids"], videos, images)
        if nothing is not None:
            inputs_embeds = inputs_embeds + nothing
        hidden = model.language_model.model(
            inputs_embeds=inputs_embeds, attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state  # (B, L, C)
        return score(hidden, batch["labels"], model.language_model.lm_head)

    def _encode(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """The tokens of videos and images, and a zero that hangs on the passes which this batch did not need.

        Other processes wait in each part of the model for this one to come along, with a medium or without. And a part
        that got no gradient on one process but did on others would be trained only there.
        """
        model: Any = self.model
        videos: list[Tensor] = batch.get("pixel_values_videos") or []
        images: Any = batch.get("pixel_values_images") or []
        questions = model.questions(batch["input_ids"], [len(video) for video in videos])
        # One pass for the videos that go as one batch, one for each image: encode_videos and encode_images.
        own = torch.tensor([len(model.passes(videos, questions)), len(images)], device=self.device)
        most = own.clone()
        if isinstance(self._strategy, ShardedStrategy):
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        most[0].clamp_(min=1)
        missing_videos, missing_images = (most - own).tolist()
        side = model.config.vision_config.image_size
        unused: list[Tensor] = []
        video_tokens = model.encode_videos(videos, questions) if videos else []
        for _ in range(missing_videos):
            frames = torch.zeros(model.config.reduction[0], 3, side, side, device=self.device)
            asked = torch.zeros(1, dtype=torch.int64, device=self.device)
            unused += model.encode_videos([frames], [asked] if model.question_conditioned else None)
        image_tokens = model.encode_images(images, batch.get("image_sizes")) if images else []
        for _ in range(missing_images):
            tile = torch.zeros(1, 3, side, side, device=self.device)
            unused.append(model.projector(patch_features(model.vision_tower, tile)))
        nothing = torch.stack([0.0 * tokens.sum() for tokens in unused]).sum() if unused else None
        return video_tokens, image_tokens, nothing

    @property
    def _strategy(self) -> Any:
        return None if self._trainer is None else self._trainer.strategy

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        if "input_ids" not in batch:
            # Its samples were all bad. The other processes wait for this one's gradients: give zeros.
            return None if self.trainer.world_size == 1 else self(self._empty_batch()).losses.sum()
        num_tokens = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        if num_tokens == 0:
            raise BimbaError(
                f"A batch of shape {tuple(batch['labels'].shape)} has no supervised token, so there is nothing to "
                "learn from it; each conversation needs a 'gpt' turn with text."
            )
        losses = self(batch).losses
        loss = losses.sum() if self.loss_mean == "tokens" else losses.mean()
        self._totals.add(loss, num_tokens, batch.get("ids", []))
        size = len(batch["input_ids"])
        if self.loss_mean == "batches":
            self.log("train/loss", loss, prog_bar=True, batch_size=size)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            if group["name"] == "base":
                self.log("train/lr", group["lr"], batch_size=size)
            elif not group["name"].endswith("_no_decay"):
                self.log(f"train/lr/{group['name']}", group["lr"], batch_size=size)
        return loss

    def _empty_batch(self) -> Batch:
        """One token, and nothing to learn."""
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        return {"input_ids": token, "attention_mask": token + 1, "labels": token + IGNORE_INDEX}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """As Lightning's, with the gradients finished between the last backward pass and the optimizer."""

        def closure() -> Any:
            loss = optimizer_closure() if optimizer_closure is not None else None
            self._finish_gradients()
            return loss

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def _finish_gradients(self) -> None:
        """Makes the gradients those of the step's mean loss; drops them if they are not numbers.

        Every process comes to the same decision, as it is made on sums over all of them.

        Raises:
            BimbaError: so many steps in a row were dropped as ``OptimizerSettings.max_skipped_steps`` allows.
        """
        totals, self._totals = self._totals, StepTotals()
        step = self._step = sum_over_processes(totals, self.model, self.device)
        if step.num_tokens == 0:  # bad samples only
            drop_gradients(self.model)
        elif not step.is_finite:
            drop_gradients(self.model)
            self._report_skipped(step, totals.ids)
        else:
            self._skipped_in_a_row = 0
            if self.loss_mean == "tokens":
                # Lightning has divided by the first, the mean over processes by the second.
                factor = self.trainer.accumulate_grad_batches * self.trainer.world_size / step.num_tokens
                scale_gradients(self.model, factor)
                norms = {part: norm * factor for part, norm in step.norms.items()}
                self._step = Step(step.loss_sum, step.num_tokens, step.num_batches, norms)

    def _report_skipped(self, step: Step, ids: list[str]) -> None:
        self._skipped += 1
        self._skipped_in_a_row += 1
        everywhere = [ids]
        if self.trainer.world_size > 1:
            everywhere = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(everywhere, ids)
        samples = ", ".join(name for some in everywhere for name in some) or "not named by the data"
        parts = [part for part, norm in step.norms.items() if not torch.isfinite(torch.tensor(norm))]
        what = f"loss {step.loss_sum / step.num_batches}, gradients of {', '.join(parts) or 'no part'} not finite"
        if self.trainer.is_global_zero:
            log.warning("Step %d is skipped (%s). Its samples: %s", self.global_step, what, samples)
        limit = self.optimizer_settings.max_skipped_steps
        if self._skipped_in_a_row >= limit:
            raise BimbaError(
                f"{limit} steps in a row (optimizer.max_skipped_steps), the last of them step {self.global_step}, had "
                f"a loss or gradients that are not numbers ({what}; samples: {samples}). The weights are as they were "
                f"before them. Lower optimizer.lr (now {self.optimizer_settings.lr}) or raise optimizer.warmup_ratio, "
                "or look at these samples."
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if "input_ids" not in batch:
            if self.trainer.world_size > 1:
                self(self._empty_batch())  # the other processes wait in the model's parts
            return
        self._validated += validation_sums(self(batch), len(batch["labels"]))

    def on_validation_epoch_start(self) -> None:
        self._validated = torch.zeros(len(ValidationSums._fields), dtype=torch.float64, device=self.device)

    def on_validation_epoch_end(self) -> None:
        """Logs means over what all processes validated; every one of them comes here, even with bad samples only."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(self._validated)
        sums = ValidationSums(*self._validated.tolist())
        if not sums.tokens:
            return
        # The same everywhere; Lightning would advise against it if it were not told to make a mean of it.
        options: dict[str, Any] = {"batch_size": 1, "sync_dist": True}
        self.log("val/loss", sums.loss / sums.tokens, prog_bar=True, **options)
        self.log("val/accuracy", sums.right / sums.tokens, **options)
        self.log("val/exact_answers", sums.exact_answers / sums.samples, prog_bar=True, **options)

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
        """Logs the step's loss, and the gradient norms before clipping, of everything and of each trained part."""
        step = self._step
        if step is None or step.num_tokens == 0:
            return  # a step of bad samples only
        if self._skipped:
            self.log("train/skipped_steps", float(self._skipped), batch_size=1)
        if self.loss_mean == "tokens":
            self.log("train/loss", step.loss_sum / step.num_tokens, prog_bar=True, batch_size=1)
        norms = {part: norm for part, norm in step.norms.items() if part not in self._parts_cut_off}
        self.log("train/grad_norm", sum(norm**2 for norm in norms.values()) ** 0.5, batch_size=1)
        for part, norm in norms.items():
            self.log(f"train/grad_norm/{part}", norm, batch_size=1)

    @property
    def _parts_cut_off(self) -> set[str]:
        return {part_of(name.removeprefix("model.")) for name in self._cut_off}

    # -- Lightning's plumbing ----------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self._shard is not None and isinstance(self._strategy, ShardedStrategy):
            shard, self._shard = self._shard, None
            shard(self, self._strategy)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves the tensors; the bad samples are a report, and frozen, which Lightning's own transfer refuses."""
        bad = {key: value for key, value in batch.items() if key == "bad_samples"}
        tensors = {key: value for key, value in batch.items() if key != "bad_samples"}
        return {**super().transfer_batch_to_device(tensors, device, dataloader_idx), **bad}  # type: ignore[typeddict-item]

    def configure_optimizers(self) -> Any:
        total_steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = build_optimizer(self.model, self.optimizer_settings, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def names_to_save(self) -> set[str]:
        """Of the weights that a Lightning checkpoint holds."""
        if self.save_frozen:
            return set(self.state_dict())
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        wanted = self.names_to_save()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in wanted}
        checkpoint["base"] = self.base
        checkpoint["batches_per_step"] = self.trainer.accumulate_grad_batches
        checkpoint["skipped_steps"] = [self._skipped, self._skipped_in_a_row]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        check_names(set(checkpoint["state_dict"]), trained, set(self.state_dict()))
        if set(checkpoint["state_dict"]) < set(self.state_dict()):  # else the frozen weights are in it
            warn_of_another_base(checkpoint.get("base", self.base), self.base)
        self._skipped, self._skipped_in_a_row = checkpoint.get("skipped_steps", (0, 0))
        now = self.trainer.accumulate_grad_batches
        count_batches_anew(checkpoint["loops"], checkpoint.get("batches_per_step", now), now)
