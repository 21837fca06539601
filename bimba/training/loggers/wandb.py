"""Weights & Biases, with or without a key, and with or without a network."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from bimba.training.loggers.base import Dashboard, Example

log = logging.getLogger(__name__)

WANDB_URL = "https://api.wandb.ai"
ANSWER_WITHIN_S = 10.0


class WandbLogger(Dashboard, LightningWandbLogger):
    """Lightning's, except that a server out of reach does not end the run: it is logged to disk instead."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None and self._wandb_init.get("mode") is None and not self._offline:
            self._go_offline_if_unreachable()
        return LightningWandbLogger.experiment.fget(self)  # type: ignore[attr-defined]

    def _go_offline_if_unreachable(self) -> None:
        import requests  # wandb's own way to its server, with its proxies and certificates

        if os.environ.get("WANDB_MODE", "online") not in ("online", "run"):
            return
        server = os.environ.get("WANDB_BASE_URL") or WANDB_URL
        try:
            requests.head(server, timeout=ANSWER_WITHIN_S)
        except requests.RequestException as error:
            # wandb.init would wait for its init_timeout, and then raise. A server that is lost later is wandb's to
            # wait for: what is logged is on disk first.
            self._wandb_init["mode"] = "offline"
            log.warning(
                "%s does not answer (%s), so this run is logged offline; upload it later with `wandb sync %s`.",
                server,
                error,
                Path(str(self.save_dir)) / "wandb" / "latest-run",
            )

    @rank_zero_only
    def log_examples(self, key: str, examples: Sequence[Example], step: int) -> None:
        """A table of the words, and the pictures apart: in a table they would lie outside the run's folder."""
        import wandb

        columns = ["step", "question", "answer", "prediction", "right"]
        rows = [[step, one.question, one.answer, one.prediction, one.is_right] for one in examples]
        images = [
            wandb.Image(strip, caption=f"{one.question}\n\nanswer: {one.answer}\nprediction: {one.prediction}")
            for one in examples
            if (strip := one.film_strip()) is not None
        ]
        media: dict[str, Any] = {key: wandb.Table(columns=columns, data=rows)}
        if images:
            media[f"{key}/frames"] = images
        self.log_metrics(media, step)

    @rank_zero_only
    def log_facts(self, facts: Mapping[str, Any]) -> None:
        self.log_hyperparams(dict(facts))


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
