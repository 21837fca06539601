"""An evaluation in the loggers of ``conf/logger``: its numbers; in Weights & Biases its plots and answers too."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from bimba.report.evaluation import Evaluation
from bimba.report.examples import Frame
from bimba.types import BimbaError, user_error

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

ANSWER_COLUMNS = ["task", "document", "video", "verdict", "prompt", "reference", "answer"]
SCORE_COLUMNS = ["task", "metric", "value", "percent", "low", "high", "n", "over"]


def numbers(evaluation: Evaluation) -> dict[str, float]:
    """All numbers: ``TASK/METRIC`` with ``_low`` and ``_high``, ``TASK/COLUMN/CATEGORY``, ``throughput/NAME``.

    Bounds have the scale of their metric, a share, percent or a count. A value of 0 does not say which: it has none.
    """
    found: dict[str, float] = {"complete": float(not evaluation.incomplete), "failed_tasks": len(evaluation.failed)}
    for task in evaluation.tasks:
        for measure in task.measures:
            found[f"{task.name}/{measure.metric}"] = measure.value
            if measure.low is not None and measure.high is not None and measure.fraction:
                scale = measure.value / measure.fraction
                found[f"{task.name}/{measure.metric}_low"] = scale * measure.low
                found[f"{task.name}/{measure.metric}_high"] = scale * measure.high
        for column, scores in task.breakdown.items():
            found |= {f"{task.name}/{column}/{_key(score.task)}": score.accuracy for score in scores}
        if task.published is not None:
            found[f"{task.name}/published"] = task.published["published"]
    for name, value in evaluation.run.throughput.items():
        if value is not None:
            found[f"throughput/{name}"] = value
    return found


def make_loggers(nodes: Mapping[str, Any] | None) -> list[Logger]:
    """The loggers of a file of ``conf/logger``; none of None.

    Raises:
        BimbaError: one of them needs a package that is not installed.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return [instantiate(node) for node in (nodes or {}).values()]
    except InstantiationException as error:
        if (known := user_error(error)) is None:
            raise
        raise BimbaError(str(known)) from error


def log_evaluation(loggers: Sequence[Logger], evaluation: Evaluation) -> None:
    """Logs the numbers of an evaluation; where the logger takes them its pictures and answers too."""
    from lightning.pytorch.loggers import WandbLogger

    run = evaluation.run
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_hyperparams(
                {"checkpoint": run.checkpoint, "fingerprint": run.fingerprint, "command": run.command}
            )
            logger.experiment.log({**numbers(evaluation), **_pictures(evaluation), **_tables(evaluation)})
            logger.experiment.finish()
        else:
            logger.log_metrics(numbers(evaluation), step=0)
            logger.finalize("success")


def _pictures(evaluation: Evaluation) -> dict[str, Any]:
    """Plots, and of each example its frames with what was answered."""
    import wandb

    pictures: dict[str, Any] = {
        f"plots/{plot.name}": wandb.Image(Image.open(io.BytesIO(plot.png())), caption=plot.description)
        for plot in [evaluation.overview(), *(task.plot() for task in evaluation.tasks)]
        if plot is not None
    }
    for task in evaluation.tasks:
        strips = [
            wandb.Image(
                _strip(example.frames),
                caption=f"document {example.doc_id}, {example.verdict}: {example.answer!r}",
                file_type="jpg",
            )
            for example in task.examples
            if example.frames
        ]
        if strips:
            pictures[f"frames/{task.name}"] = strips
    return pictures


def _tables(evaluation: Evaluation) -> dict[str, Any]:
    import wandb

    scores = [
        [
            *(task.name, m.metric, m.value, *(None if x is None else 100 * x for x in (m.fraction, m.low, m.high))),
            *(m.n, m.over),
        ]
        for task in evaluation.tasks
        for m in task.measures
    ]
    answers = [
        [
            *(
                example.task,
                example.doc_id,
                example.video,
                example.verdict,
                example.prompt,
                example.reference,
                example.answer,
            )
        ]
        for task in evaluation.tasks
        for example in task.examples
    ]
    return {"scores": wandb.Table(SCORE_COLUMNS, scores), "answers": wandb.Table(ANSWER_COLUMNS, answers)}


def _strip(frames: Sequence[Frame]) -> Image.Image:
    """Frames side by side as one picture."""
    pictures = [Image.open(io.BytesIO(frame.jpeg)) for frame in frames]
    strip = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)))
    x = 0
    for picture in pictures:
        strip.paste(picture, (x, 0))
        x += picture.width
    return strip


def _key(name: str) -> str:
    """A category as a part of a key: a slash would begin another section."""
    return re.sub(r"[^\w.-]+", "_", name)
