"""What every logger of ours can do besides Lightning's: sparse values, sample answers with frames, facts of the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from bimba.types import BimbaError


@dataclass(frozen=True)
class Example:
    """A sample of the validation set, and what the model says to it.

    Attributes:
        question: the words of the prompt, chat markup left out.
        answer: what should be said.
        prediction: what the model said.
        frames: (n, height, width, 3) uint8, RGB, a few of the frames; n = 0 for a question about text.
    """

    question: str
    answer: str
    prediction: str
    frames: np.ndarray

    @property
    def is_right(self) -> bool:
        return self.prediction.strip() == self.answer.strip()

    def film_strip(self) -> Image.Image | None:
        """The frames side by side; None without frames."""
        return Image.fromarray(np.concatenate(list(self.frames), axis=1)) if len(self.frames) else None


class Dashboard(ABC):
    """Mixed into a Lightning logger. Called on the first rank only."""

    def add_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Values of a step whose other values Lightning is about to log."""
        self.log_metrics(metrics, step)  # type: ignore[attr-defined]

    @abstractmethod
    def log_examples(self, key: str, examples: Sequence[Example], step: int) -> None:
        """Sample answers, with their frames."""

    def log_facts(self, facts: Mapping[str, Any]) -> None:
        """The configuration and the versions of the code, nested."""
        self.log_hyperparams(dict(facts))  # type: ignore[attr-defined]


def needs(package: str, logger: str) -> None:
    """Raises a BimbaError unless ``package`` is installed."""
    if find_spec(package) is None:
        raise BimbaError(
            f"logger={logger} needs the package {package}, which is not installed: pip install {package}, or "
            "logger=csv, which needs nothing."
        )
