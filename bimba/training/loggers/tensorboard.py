"""TensorBoard: event files in ``<run>/tensorboard``, which ``tensorboard --logdir <run>`` shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from bimba.training.loggers.base import Dashboard, Example, needs


class TensorBoardLogger(Dashboard, LightningTensorBoardLogger):
    """Lightning's, with sample answers as text and pictures, and the run's facts as text."""

    @rank_zero_only
    def log_examples(self, key: str, examples: Sequence[Example], step: int) -> None:
        for number, example in enumerate(examples):
            words = f"**Question**\n\n{example.question}\n\n**Answer**: {example.answer}\n\n"
            self.experiment.add_text(f"{key}/{number}", f"{words}**Prediction**: {example.prediction}", step)
            strip = example.film_strip()
            if strip is not None:
                self.experiment.add_image(f"{key}/{number}", np.asarray(strip), step, dataformats="HWC")

    @rank_zero_only
    def log_facts(self, facts: Mapping[str, Any]) -> None:
        """As text: TensorBoard's table of hyperparameters takes no nested ones."""
        for name, value in facts.items():
            self.experiment.add_text(name, f"```\n{json.dumps(value, indent=1)}\n```", 0)


def tensorboard_logger(run_dir: str | Path) -> TensorBoardLogger:
    """Raises a BimbaError if TensorBoard is not installed."""
    needs("tensorboard", "tensorboard")
    return TensorBoardLogger(save_dir=str(run_dir), name="", version="tensorboard", default_hp_metric=False)
