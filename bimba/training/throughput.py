"""How fast the run is, and what it waits for."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler
from torch import Tensor

from bimba.data.tokenize import IGNORE_INDEX
from bimba.training.flops import Work, count_flops, peak_flops
from bimba.training.reporting import PeriodicCallback, gathered, report
from bimba.types import Batch

_RATES = ("tokens", "learned_tokens", "samples", "videos", "frames", "patch_tokens", "flops")


class FetchTimer(Profiler):
    """Measures how long the loop waits for the next batch, and hands everything on to the trainer's own profiler."""

    ACTION = ".train_dataloader_next"

    def __init__(self, profiler: Profiler):
        super().__init__()
        self.profiler = profiler
        self.waited_s = 0.0
        self._began_s = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith(self.ACTION):
            self._began_s = perf_counter()
        self.profiler.start(action_name)

    def stop(self, action_name: str) -> None:
        self.profiler.stop(action_name)
        if action_name.endswith(self.ACTION):
            self.waited_s += perf_counter() - self._began_s

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        self.profiler.setup(stage, local_rank, log_dir)

    def teardown(self, stage: str | None) -> None:
        self.profiler.teardown(stage)

    def summary(self) -> str:
        return self.profiler.summary()

    def describe(self) -> None:
        self.profiler.describe()


class Throughput(PeriodicCallback):
    """Logs rates of all ranks together, since the last report, and where the time went.

    ===============================  ===================================================================================
    key                              value
    ===============================  ===================================================================================
    speed/tokens_per_second          tokens of sequences, video tokens included, padding not
    speed/learned_tokens_per_second  those with a label
    speed/samples_per_second
    speed/videos_per_second
    speed/frames_per_second          of videos
    speed/patch_tokens_per_second    of these frames, which enter the compressor
    speed/mfu                        share of the devices' peak that the operations of ``bimba.training.flops`` make up;
                                     absent where the peak is unknown, as on a CPU, unless ``peak_flops`` is given
    speed/flops_per_second           these operations, of all devices
    time/data_wait_percent           of the time of training, what the loop stood waiting for a batch
    time/other_percent               of all time, what was no training: validation, checkpoints, reports
    data/bad_samples                 samples that could not be read, since the start of this process
    memory/allocated_gib,            the most a GPU had allocated and reserved since the last report; the fullest GPU's
    memory/reserved_gib
    ===============================  ===================================================================================

    Rates are per second of training: waiting for a batch, and the pass and step on it. On a GPU the loop may wait for a
    batch while the GPU still computes the last one, so there ``data_wait_percent`` is an upper bound.

    Costs one collective of a few numbers per report, and on a GPU a wait for what it still has to do.

    Args:
        peak_flops: operations per second of one device; None: as Lightning's table says.

    Attributes:
        patch_token_rates: ``speed/patch_tokens_per_second`` of each report, of the runs that were resumed too.
        peak_allocated_gib: the greatest ``memory/allocated_gib``.
    """

    def __init__(self, every_n_steps: int | None = 10, peak_flops: float | None = None):
        super().__init__(every_n_steps)
        self.peak_flops = peak_flops
        self.fetch_timer: FetchTimer | None = None
        self.patch_token_rates: list[float] = []
        self.peak_allocated_gib = 0.0
        self._bad_samples = 0
        self._restart()

    def state_dict(self) -> dict[str, Any]:
        return {"patch_token_rates": self.patch_token_rates, "peak_allocated_gib": self.peak_allocated_gib}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.patch_token_rates = list(state_dict["patch_token_rates"])
        self.peak_allocated_gib = state_dict["peak_allocated_gib"]

    def _restart(self) -> None:
        self._lengths: list[Tensor] = []
        self._learned: list[Tensor] = []
        self._videos: list[int] = []
        self._num_tiles = 0
        self._bad = 0
        self._busy_s = 0.0
        self._window_began_s = self._batch_began_s = perf_counter()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._peak = peak_flops(trainer, self.peak_flops)
        if self.every_n_steps is not None:
            self.fetch_timer = FetchTimer(trainer.profiler)  # type: ignore[attr-defined]
            trainer.profiler = self.fetch_timer  # type: ignore[attr-defined]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._restart()
        if self.fetch_timer is not None:
            self.fetch_timer.waited_s = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self._batch_began_s = perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, *_: Any) -> None:
        if self.fetch_timer is None:
            return
        self._note(batch)
        is_due = self.is_due(trainer)
        device = trainer.strategy.root_device
        if is_due and device.type == "cuda":
            torch.cuda.synchronize(device)
        self._busy_s += perf_counter() - self._batch_began_s
        if is_due:
            own = {**self._count(pl_module.model), "busy_s": self._busy_s, "wait_s": self.fetch_timer.waited_s}
            own |= {"all_s": perf_counter() - self._window_began_s, **_memory(device)}
            of_ranks = gathered(trainer, own)
            metrics = self._metrics(of_ranks)
            self.patch_token_rates.append(metrics["speed/patch_tokens_per_second"])
            self.peak_allocated_gib = max(self.peak_allocated_gib, metrics.get("memory/allocated_gib", 0.0))
            report(trainer, metrics)
            self._restart()
            self.fetch_timer.waited_s = 0.0

    def _note(self, batch: Batch) -> None:
        self._bad += len(batch.get("bad_samples", []))
        if "input_ids" not in batch:
            return
        # Read when they are reported: now, it would wait for the GPU.
        self._lengths.append(batch["attention_mask"].sum(dim=1))
        self._learned.append((batch["labels"] != IGNORE_INDEX).sum())
        self._videos += [len(video) for video in batch.get("pixel_values_videos") or []]
        images: Any = batch.get("pixel_values_images") or []
        self._num_tiles += sum(len(tiles) for tiles in images)

    def _count(self, model: Any) -> dict[str, float]:
        lengths = torch.cat(self._lengths).tolist() if self._lengths else []
        learned = int(torch.stack(self._learned).sum()) if self._learned else 0
        work = Work(lengths, learned, self._videos, self._num_tiles)
        return {
            "bad_samples": self._bad,
            "tokens": sum(lengths),
            "learned_tokens": learned,
            "samples": len(lengths),
            "videos": len(self._videos),
            "frames": sum(self._videos),
            "patch_tokens": sum(self._videos) * model.config.patch_grid**2,
            "flops": count_flops(model, work),
        }

    def _metrics(self, of_ranks: list[dict[str, float]]) -> dict[str, float]:
        total = {key: sum(own[key] for own in of_ranks) for key in of_ranks[0]}
        train_s = (total["busy_s"] + total["wait_s"]) / len(of_ranks)
        self._bad_samples += int(total["bad_samples"])
        metrics = {f"speed/{key}_per_second": total[key] / train_s for key in _RATES}
        if self._peak is not None:
            metrics["speed/mfu"] = total["flops"] / train_s / (self._peak * len(of_ranks))
        metrics["time/data_wait_percent"] = 100 * total["wait_s"] / (total["busy_s"] + total["wait_s"])
        metrics["time/other_percent"] = max(0.0, 100 * (1 - train_s * len(of_ranks) / total["all_s"]))
        metrics["data/bad_samples"] = float(self._bad_samples)
        for key in set(of_ranks[0]) & {"memory/allocated_gib", "memory/reserved_gib"}:
            metrics[key] = max(own[key] for own in of_ranks)
        return metrics

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.fetch_timer is not None:
            trainer.profiler = self.fetch_timer.profiler  # type: ignore[attr-defined]
            self.fetch_timer = None


def _memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    found = {
        "memory/allocated_gib": torch.cuda.max_memory_allocated(device) / 2**30,
        "memory/reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30,
    }
    torch.cuda.reset_peak_memory_stats(device)
    return found
