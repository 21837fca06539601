"""``run.json`` in a run's folder: how it went, and what it cost. What a sweep and its report go by."""

from __future__ import annotations

import copy
import logging
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import lightning as L
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from bimba.processes import peak_memory_mib
from bimba.runs import RUN_FILE, lock_of_run, read_run, write_json
from bimba.training.code_version import code_version
from bimba.training.throughput import Throughput
from bimba.training.trainable import count_parts
from bimba.types import BimbaError, first_line, user_error

log = logging.getLogger(__name__)

LOCK_WAIT_S = 10.0  # data workers outlive a process that was killed by some seconds, and hold its lock


class RunRecord(L.Callback):
    """Keeps ``<run_dir>/run.json`` up to date; to be used as a context, around the training and what follows it.

    ==================  ================================================================================================
    key                 value
    ==================  ================================================================================================
    status              running (or killed without a chance to say so), finished, failed
    command, overrides  how it was started, and what of it chose keys
    code_version        of :func:`bimba.training.code_version.code_version`
    earlier_code        bimba and git of the code that trained the weights before, where it was another
    started             of this process; a run that resumes another one has a later one
    steps               optimizer steps at the end
    train_seconds       of all processes in a row that trained the weights, but for what was trained and lost
    evaluate            name -> arguments of each evaluation of the trained model
    evaluation_seconds  name -> how long it took; those that have ended
    peak_memory_mib     the most that the first process had in memory
    gpu_peak_memory_mib the most that the fullest GPU had allocated; null on a CPU
    tokens_per_second   patch tokens that entered the compressor, per second of training, in all processes; the median
                        of what ``Throughput`` reports; null without it
    parameters          of the compressor; and all that are trained
    compression         frames, patch_tokens, visual_tokens (without newlines) of one video
    metrics             the last value of each that Lightning logged, such as train/loss
    objective           what a sweeper is to go by; null unless the key ``objective`` says what
    error               what ended a failed run; or null
    ==================  ================================================================================================

    Only the first process writes, and as long as the context lasts no other run begins in this folder: it raises
    ``BimbaError``. ``train_seconds`` and the code go into the files of ``resume/`` with the weights they belong to.

    Args:
        run_dir: of the run.
        overrides: of its configuration.
        evaluate: name -> arguments, as above.
    """

    def __init__(self, run_dir: str | Path, overrides: Sequence[str], evaluate: dict[str, list[str]] | None = None):
        self.path = Path(run_dir) / RUN_FILE
        self.evaluate = evaluate or {}
        self.earlier: dict[str, Any] | None = None  # what run.json said before
        self.has_stepped = False  # whether this process has changed the weights
        self._lock = lock_of_run(self.path.parent)
        self._before_s = 0.0  # trained by the processes that this one goes on from
        self._began_s: float | None = None
        self.values: dict[str, Any] = {
            "status": "running",
            "command": [sys.executable, *sys.argv],
            "overrides": list(overrides),
            "code_version": code_version(),
            "earlier_code": [],
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "steps": 0,
            "train_seconds": 0.0,
            "evaluate": self.evaluate,
            "evaluation_seconds": {},
            "peak_memory_mib": 0.0,
            "gpu_peak_memory_mib": None,
            "tokens_per_second": None,
            "parameters": None,
            "compression": None,
            "metrics": {},
            "objective": None,
            "error": None,
        }

    def __enter__(self) -> RunRecord:
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            _take(self._lock, self.path.parent)
        self.earlier = read_run(self.path.parent)
        self.write()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.write(
                status="finished" if error is None else "failed",
                error=None if error is None else str(user_error(error) or error) or type(error).__name__,
                train_seconds=round(self.train_seconds, 3),
                peak_memory_mib=round(peak_memory_mib(), 1),
            )
        except OSError as unwritten:  # of a full disk, as a rule: what ended the run is what has to be said
            if error is None:
                raise
            log.warning("%s could not be written: %s", self.path, first_line(unwritten))
        finally:
            self._lock.release()

    def write(self, **values: Any) -> None:
        """Notes values, and replaces the file."""
        self.values |= values
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return
        write_json(self.path, self.values)

    @property
    def train_seconds(self) -> float:
        """Until now."""
        return self._before_s + (0.0 if self._began_s is None else perf_counter() - self._began_s)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began_s = perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.has_stepped = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before_s, self._began_s = self.train_seconds, None

    def state_dict(self) -> dict[str, Any]:
        return {"train_seconds": self.train_seconds, "code": [*self.values["earlier_code"], self._code]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before_s = state_dict["train_seconds"]
        earlier = state_dict.get("code", [])  # files of before it was noted have none
        self.values["earlier_code"] = [code for code in earlier if code != self._code]

    @property
    def _code(self) -> dict[str, Any]:
        return {key: self.values["code_version"][key] for key in ("bimba", "git")}

    def trained(self, trainer: L.Trainer) -> None:
        """Notes what a trainer that has ended its ``fit`` shows."""
        module: Any = trainer.lightning_module
        config, counts = module.model.config, count_parts(module.model.named_parameters())
        found = [callback for callback in trainer.callbacks if isinstance(callback, Throughput)]  # type: ignore[attr-defined]
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        rates = [rate for callback in found for rate in callback.patch_token_rates]
        self.write(
            steps=trainer.global_step,
            gpu_peak_memory_mib=_gpu_peak_memory_mib(trainer, found),
            tokens_per_second=round(statistics.median(rates), 3) if rates else None,
            parameters={
                "compressor": sum(count.total for count in counts if count.part == "compressor"),
                "trained": sum(count.trained for count in counts),
            },
            compression={
                "frames": config.num_frames,
                "patch_tokens": config.num_frames * config.patch_grid**2,
                "visual_tokens": _num_queries(module.processor, config.num_frames),
            },
            metrics=metrics or self._metrics_of_earlier(trainer.global_step),
        )

    def _metrics_of_earlier(self, steps: int) -> dict[str, float]:
        """Of the process that made the last step, where this one had nothing to train."""
        earlier = self.earlier or {}
        return dict(earlier.get("metrics", {})) if earlier.get("steps") == steps else {}


def _take(lock: FileLock, run_dir: Path) -> None:
    """Raises ``BimbaError`` where another process has the lock, such as a cell whose sweep was killed."""
    try:
        lock.acquire(timeout=LOCK_WAIT_S)
    except Timeout:
        raise BimbaError(
            f"{run_dir} is in use by another process, which trains or evaluates there; wait for its end, end it, or "
            "give another hydra.run.dir."
        ) from None


def _gpu_peak_memory_mib(trainer: L.Trainer, found: Sequence[Throughput]) -> float | None:
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    reported = max((callback.peak_allocated_gib for callback in found), default=0.0) * 2**10  # which starts it anew
    return round(max(reported, torch.cuda.max_memory_allocated(device) / 2**20), 1)


def _num_queries(processor: Any, num_frames: int) -> int:
    """Visual tokens of a video, without newlines."""
    plain = copy.copy(processor)
    plain.newline_position = "no_token"
    return int(plain.num_video_tokens(num_frames))
