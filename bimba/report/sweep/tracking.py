"""A sweep's report in Weights & Biases: the tables of the page, its plots, and its accuracies as numbers."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Literal

from PIL import Image

from bimba.report.sweep.page import Page
from bimba.report.sweep.summary import Sweep


def log_to_wandb(project: str, out: Path, sweep: Sweep, page: Page) -> None:
    """Logs one run, to the folder ``wandb`` in ``out``; to the server only where ``WANDB_MODE`` says ``online``."""
    import wandb

    mode: Literal["online", "offline"] = "online" if os.environ.get("WANDB_MODE") == "online" else "offline"
    with wandb.init(
        project=project, dir=str(out), mode=mode, job_type="report", config={"cells": len(sweep.cells)}
    ) as run:
        numbers = {
            f"{score.evaluation}/{score.task}/{score.label.name}{end}": value
            for score in sweep.scores
            for end, value in (
                ("", score.estimate.mean),
                ("_low", score.estimate.low),
                ("_high", score.estimate.high),
            )
        }
        shown = {f"tables/{one.name}": wandb.Table(columns=list(one.columns), data=one.rows) for one in page.tables}
        pictures = {
            f"plots/{one.name}": wandb.Image(Image.open(io.BytesIO(one.drawn("png"))), caption=one.title)
            for one in page.pictures
        }
        run.log({**numbers, **shown, **pictures})
