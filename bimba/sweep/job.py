"""A job of a sweep that another launcher than ours runs as a function: it starts the cell as a process."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from bimba.sweep import ledger
from bimba.sweep.cell import Cell, Outcome
from bimba.sweep.names import NameCells, cell_folder
from bimba.sweep.pool import run_cells

__all__ = ["NameCells", "cell_folder", "is_job_of_sweep", "run_as_process"]


def is_job_of_sweep() -> bool:
    """Whether Hydra calls this process's main function for one cell of many."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def run_as_process(script: Path) -> float | None:
    """Runs the cell that Hydra's configuration describes.

    Args:
        script: ``train.py``.

    Returns:
        its objective.

    Raises:
        CompactHydraException: it failed, which ends a sweep once all its jobs have run.
    """
    hydra = HydraConfig.get()
    config = OmegaConf.create({"hydra": hydra})
    cell = Cell.from_config(script, config, Path(hydra.runtime.output_dir))
    sweep_dir = Path(hydra.sweep.dir).absolute()
    (outcome,) = run_cells([cell], 1, lambda cell, outcome: ledger.note(sweep_dir, cell, outcome))
    return objective_of(cell, outcome)


def objective_of(cell: Cell, outcome: Outcome) -> float | None:
    """What a sweeper is told of a cell.

    Raises:
        CompactHydraException: the cell failed.
    """
    if outcome.status != "finished":
        raise CompactHydraException(f"{cell.name} failed: {outcome.error} ({cell.folder})")
    return outcome.objective
