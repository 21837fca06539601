"""Where metrics go: ``metrics.csv`` in the run's folder, and Weights & Biases with or without a key."""

from __future__ import annotations

import csv
import logging
import netrc
import os
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)

WANDB_URL = "https://api.wandb.ai"


class _Writer(ExperimentWriter):
    """Lightning's writer, except that ``CsvLogger`` decides what becomes of an earlier file."""

    def _check_log_dir_exists(self) -> None:
        pass

    def keep_steps_before(self, step: int) -> None:
        """Takes over the rows of earlier steps, and drops the others."""
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if int(row["step"]) < step]
            self.metrics_keys = list(reader.fieldnames or []) if rows else []
        path.unlink()
        if rows:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, self.metrics_keys)
                writer.writeheader()
                writer.writerows(rows)


class CsvLogger(CSVLogger):
    """Writes ``<run_dir>/metrics.csv``, flushed at every logged step.

    Args:
        run_dir: a new run replaces the file that an earlier one left here.
        resume: where the run goes on from, None for a new one; then the rows before the first new step stay.
    """

    def __init__(self, run_dir: str | Path, resume: str | None = None):
        super().__init__(save_dir=run_dir, name="", version="", flush_logs_every_n_steps=1)
        self._resumed = resume is not None
        self._has_begun = False

    @property
    @rank_zero_experiment
    def experiment(self) -> _Writer:
        if self._experiment is None:
            self._experiment = _Writer(log_dir=str(self.save_dir))
        return cast("_Writer", self._experiment)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if not self._has_begun:
            self._has_begun = True
            self.experiment.keep_steps_before(step or 0 if self._resumed else 0)
        super().log_metrics(metrics, step)


def has_wandb_key() -> bool:
    """Whether this machine can log in to Weights & Biases: ``WANDB_API_KEY``, or an entry in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", WANDB_URL)).netloc
    names = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for path in (Path(name).expanduser() for name in names):
        if path.is_file():
            try:
                return netrc.netrc(path).authenticators(host) is not None
            except netrc.NetrcParseError as error:
                log.warning("%s cannot be read (%s), so it gives no Weights & Biases key.", path, error)
    return False


def wandb_logger(run_dir: str | Path, project: str, name: str | None = None, **kwargs: Any) -> WandbLogger:
    """Weights & Biases; without a key (and unless ``WANDB_MODE`` says otherwise) offline, under ``<run_dir>/wandb``."""
    offline = "WANDB_MODE" not in os.environ and not has_wandb_key()
    if offline:
        log.info(
            "No Weights & Biases key, so this run is logged offline: look at it with `wandb beta leet run %s`, or "
            "upload it later with `wandb login` and `wandb sync %s`.",
            Path(run_dir) / "wandb" / "latest-run",
            Path(run_dir) / "wandb" / "latest-run",
        )
    # log_model stays off: the checkpoint is on disk, and an upload of gigabytes should be asked for.
    return WandbLogger(save_dir=str(run_dir), project=project, name=name, offline=offline, log_model=False, **kwargs)
