"""Trackio, which has Weights & Biases' calls and keeps everything on this machine; Lightning has no logger for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from bimba.training.loggers.base import Dashboard, Example, needs


class TrackioLogger(Dashboard, Logger):
    """Logs to the local database of Trackio (``TRACKIO_DIR``, by default in its cache folder): ``trackio show``.

    Args:
        run_dir: names the run, unless ``name`` does, by its last two parts.
        project: what runs that are shown together have in common.
        name: of the run.
        space_id: a Hugging Face Space to log to instead; None: nothing leaves this machine, unless Trackio's own
            variables ``TRACKIO_SPACE_ID`` or ``TRACKIO_SERVER_URL`` ask for it.

    Raises:
        BimbaError: Trackio is not installed.
    """

    def __init__(self, run_dir: str | Path, project: str, name: str | None = None, space_id: str | None = None):
        needs("trackio", "trackio")
        super().__init__()
        self._run_name = name or "-".join(Path(run_dir).absolute().parts[-2:])
        self._project = project
        self._space_id = space_id
        self._run: Any = None

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self._run_name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Trackio's run."""
        import trackio

        if self._run is None:
            self._run = trackio.init(
                project=self._project, name=self._run_name, space_id=self._space_id, resume="allow", embed=False,
                auto_log_cpu=False,
            )  # fmt: skip
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.experiment.config.update(params)

    @rank_zero_only
    def log_examples(self, key: str, examples: Sequence[Example], step: int) -> None:
        import trackio

        rows = []
        for example in examples:
            strip = example.film_strip()
            image = None if strip is None else trackio.Image(strip)
            rows.append([image, example.question, example.answer, example.prediction, example.is_right])
        columns = ["frames", "question", "answer", "prediction", "right"]
        self.log_metrics({key: trackio.Table(columns=columns, data=rows)}, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
