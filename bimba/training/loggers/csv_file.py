"""``metrics.csv`` and, for what is no number, files beside it."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from bimba.training.loggers.base import Dashboard, Example

log = logging.getLogger(__name__)


class _Writer(ExperimentWriter):
    """Lightning's writer, except that ``CsvLogger`` decides what becomes of an earlier file."""

    _has_failed = False

    def _check_log_dir_exists(self) -> None:
        pass

    def keep_steps_before(self, step: int) -> None:
        """Takes over the rows of earlier steps, and drops the others, and one that was cut off in the middle."""
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if (row.get("step") or "").isdecimal() and int(row["step"]) < step]
            self.metrics_keys = list(reader.fieldnames or []) if rows else []
        if rows:
            self._replace(rows, self.metrics_keys)
        else:
            path.unlink()

    def save(self) -> None:
        """Writes what was logged. What cannot be written, on a full disk say, is kept for the next time."""
        if not self.metrics:
            return
        try:
            self._append()
        except OSError as error:
            if not self._has_failed:
                log.warning("%s cannot be written (%s); its rows are kept in memory.", self.metrics_file_path, error)
            self._has_failed = True
        else:
            self.metrics, self._has_failed = [], False

    def _append(self) -> None:
        path = Path(self.metrics_file_path)
        keys_before = list(self.metrics_keys)
        if self._record_new_keys() and path.is_file():
            try:
                self._rewrite_with_new_header(self.metrics_keys)
            except OSError:
                self.metrics_keys = keys_before
                raise
        size = path.stat().st_size if path.is_file() else 0
        try:
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, self.metrics_keys)
                if not size:
                    writer.writeheader()
                writer.writerows(self.metrics)
        except OSError:
            if path.is_file():
                os.truncate(path, size)
            raise

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(newline="") as file:
            rows = list(csv.DictReader(file))
        self._replace(rows, fieldnames)

    def _replace(self, rows: list[dict[str, str]], keys: list[str]) -> None:
        """The whole file anew; a run that is killed meanwhile still has the old one."""
        path = Path(self.metrics_file_path)
        unfinished = path.with_name(f"{path.name}.unfinished")
        with unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(unfinished, path)


class CsvLogger(Dashboard, CSVLogger):
    """Writes ``<run_dir>/metrics.csv``, flushed at every logged step, and ``<run_dir>/examples/<key>/step_<step>/``.

    Args:
        run_dir: a new run replaces the file that an earlier one left here.
        resume: where the run goes on from, None for a new one; then the rows before the first new step stay.
    """

    def __init__(self, run_dir: str | Path, resume: str | None = None):
        super().__init__(save_dir=run_dir, name="", version="", flush_logs_every_n_steps=1)
        self._resumed = resume is not None
        self._has_begun = False
        self._added: dict[str, float] = {}
        self._added_step = 0

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
        if self._added and step == self._added_step:
            metrics, self._added = {**self._added, **metrics}, {}
        self._write_added()
        super().log_metrics(metrics, step)

    @rank_zero_only
    def add_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Held back until the other values of this step come, so that a step is one row."""
        if self._added and step != self._added_step:
            self._write_added()
        self._added.update(metrics)
        self._added_step = step

    def _write_added(self) -> None:
        if self._added:
            added, self._added = self._added, {}
            self.log_metrics(added, self._added_step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._write_added()  # of a step that Lightning did not log
        super().finalize(status)

    @rank_zero_only
    def log_examples(self, key: str, examples: Sequence[Example], step: int) -> None:
        """A ``.png`` of the frames for each, and ``examples.jsonl`` with the words."""
        folder = Path(self.save_dir) / "examples" / key / f"step_{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "examples.jsonl").open("w", encoding="utf-8") as file:
            for number, example in enumerate(examples):
                strip = example.film_strip()
                if strip is not None:
                    strip.save(folder / f"{number}.png")
                row = {
                    "question": example.question,
                    "answer": example.answer,
                    "prediction": example.prediction,
                    "frames": None if strip is None else f"{number}.png",
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def log_facts(self, facts: Mapping[str, Any]) -> None:
        """Nothing: ``config.yaml`` and ``code.json`` lie in the same folder."""
