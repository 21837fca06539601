"""Where metrics go: ``metrics.csv`` in the run's folder, and Weights & Biases with or without a key."""

from __future__ import annotations

import csv
import logging
import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

log = logging.getLogger(__name__)

WANDB_URL = "https://api.wandb.ai"


class _AppendingWriter(ExperimentWriter):
    """Lightning's writer, except that rows of an earlier part of the same run are kept instead of deleted."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])


class CsvLogger(CSVLogger):
    """Writes ``<run_dir>/metrics.csv``, flushed at every logged step; a resumed run in the same folder appends."""

    def __init__(self, run_dir: str | Path):
        super().__init__(save_dir=run_dir, name="", version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:  # type: ignore[override]
        if self._experiment is None:
            self._experiment = _AppendingWriter(log_dir=str(self.save_dir))
        return self._experiment  # type: ignore[return-value]


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
            "No Weights & Biases key, so this run is logged offline: look at it with `wandb beta leet run %s`, or upload "
            "it later with `wandb login` and `wandb sync %s`.",
            Path(run_dir) / "wandb" / "latest-run",
            Path(run_dir) / "wandb" / "latest-run",
        )
    # log_model stays off: the checkpoint is on disk, and an upload of gigabytes should be asked for.
    return WandbLogger(save_dir=str(run_dir), project=project, name=name, offline=offline, log_model=False, **kwargs)
