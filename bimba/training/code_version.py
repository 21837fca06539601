"""Which code and which packages a run was made with: ``code.json`` in its folder, and beside it in every logger."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from bimba.runs import git_state
from bimba.training.reporting import dashboards

PACKAGES = (
    "torch", "transformers", "lightning", "peft", "hydra-core", "decord", "av", "torchcodec", "mamba-ssm",
    "causal-conv1d", "triton", "flash-attn", "liger-kernel", "numpy",
)  # fmt: skip


class RecordCode(L.Callback):
    """Writes ``<run_dir>/code.json`` and gives it to the loggers, together with ``config.yaml`` if that is there.

    Args:
        run_dir: of the run.
    """

    FILE_NAME = "code.json"

    def __init__(self, run_dir: str | Path):
        self.run_dir = Path(run_dir)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        code = code_version()
        code["world_size"] = trainer.world_size
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / self.FILE_NAME).write_text(json.dumps(code, indent=1) + "\n", encoding="utf-8")
        facts: dict[str, Any] = {"code": code}
        config = self.run_dir / "config.yaml"
        if config.is_file():
            facts["config"] = yaml.safe_load(config.read_text(encoding="utf-8"))
        for logger in dashboards(trainer):
            logger.log_facts(facts)


def code_version() -> dict[str, Any]:
    """What to know to run the same again: the commit, versions, the machine, the command. JSON through and through."""
    packages = {name: found for name in PACKAGES if (found := _version_of(name)) is not None}
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "bimba": _version_of("bimba"),
        "git": git_state(Path(__file__).parent),
        "packages": packages,
        "python": platform.python_version(),
        "cuda": torch.version.cuda if devices else None,
        "devices": devices or ["cpu"],
        "command": sys.argv,
    }


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
