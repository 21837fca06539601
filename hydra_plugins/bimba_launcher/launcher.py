"""``hydra/launcher=bimba``, the default of ``python train.py -m``: every cell a fresh process, bounded by the cores."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from bimba.sweep import ledger
from bimba.sweep.cell import Cell, Outcome
from bimba.sweep.display import print_outcomes, shown
from bimba.sweep.job import objective_of
from bimba.sweep.pool import run_cells


class BimbaLauncher(Launcher):
    """Runs the cells of a sweep here.

    Args:
        n_jobs: how many at a time; None: as many as the cores hold on the CPU, and one on GPUs.
        threads: of each process of a cell (OMP_NUM_THREADS); None: that variable's value, or 1.
    """

    def __init__(self, n_jobs: int | None = None, threads: int | None = None) -> None:
        for name, value in (("n_jobs", n_jobs), ("threads", threads)):
            if value is not None and value < 1:
                raise CompactHydraException(f"hydra.launcher.{name} is {value}; expected 1 or more, or null.")
        self.n_jobs = n_jobs
        self.threads = threads

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        state = Singleton.get_state()
        try:
            jobs = [self._compose(overrides, i) for i, overrides in enumerate(job_overrides, initial_job_idx)]
        finally:
            Singleton.set_state(state)
        cells = [cell for cell, _ in jobs]
        _check_folders(cells)
        sweep_dir = Path(str(self.config.hydra.sweep.dir)).absolute()
        ledger.plan(sweep_dir, cells)
        threads = self.threads or threads_of_environment()
        n_jobs = self.n_jobs or min(jobs_at_a_time(config, threads) for _, config in jobs)
        environment = {"OMP_NUM_THREADS": str(threads)}
        console = Console()
        cells_here = f"{len(cells)} cell{'s' * (len(cells) > 1)}"
        console.print(f"{cells_here}, {min(n_jobs, len(cells))} at a time, in {sweep_dir}", soft_wrap=True)
        with shown(len(cells), console) as show:

            def listen(cell: Cell, outcome: Outcome | None) -> None:
                ledger.note(sweep_dir, cell, outcome)
                show(cell, outcome)

            outcomes = run_cells(cells, n_jobs, listen, [environment] * n_jobs)
        print_outcomes(cells, outcomes, console)
        num_failed = sum(outcome.status != "finished" for outcome in outcomes)
        where = (
            f"{num_failed} of {len(cells)} cells failed; the same command tries them again. {sweep_dir / 'sweep.json'}"
        )
        return [_returned(*job, outcome, where) for job, outcome in zip(jobs, outcomes)]

    def _compose(self, overrides: Sequence[str], number: int) -> tuple[Cell, DictConfig]:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        folder = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
        script = Path(inspect.getfile(self.task_function)).resolve()
        return Cell.from_config(script, config, folder.absolute()), config


def jobs_at_a_time(config: DictConfig, threads: int) -> int:
    """How many cells like this one the cores hold; one if it is to run on a GPU, which it takes for itself."""
    if config.trainer.accelerator != "cpu":
        return 1
    devices = config.trainer.devices
    processes = devices if isinstance(devices, int) and devices > 0 else 1
    return max(1, num_cores() // (processes * threads))


def threads_of_environment() -> int:
    """What OMP_NUM_THREADS says, of the outermost level where it is a list; 1 where it is not set."""
    value = os.environ.get("OMP_NUM_THREADS") or "1"
    try:
        return max(1, int(value.split(",")[0]))
    except ValueError:
        raise CompactHydraException(
            f"OMP_NUM_THREADS is {value!r}; expected a number. Set it to one, or give hydra.launcher.threads."
        ) from None


def num_cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_folders(cells: Sequence[Cell]) -> None:
    """Raises ``CompactHydraException`` where two cells would write to the same folder."""
    seen: dict[Path, Cell] = {}
    for cell in cells:
        if (other := seen.setdefault(cell.folder, cell)) is not cell:
            raise CompactHydraException(
                f"Two cells have the folder {cell.folder}: {' '.join(other.overrides)} and {' '.join(cell.overrides)}. "
                "Give each value once, and leave hydra.sweep.subdir as it is."
            )


def _returned(cell: Cell, config: DictConfig, outcome: Outcome, where: str) -> JobReturn:
    """How Hydra's sweepers want to be told; a failed cell's error ends the sweep, once all cells of it have run."""
    job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    returned = JobReturn(
        overrides=list(cell.overrides),
        cfg=job,
        hydra_cfg=OmegaConf.masked_copy(config, ["hydra"]),
        working_dir=str(cell.folder),
        task_name=config.hydra.job.name,
    )
    try:
        returned.return_value = objective_of(cell, outcome)
        returned.status = JobStatus.COMPLETED
    except CompactHydraException:
        returned.return_value = CompactHydraException(where)
        returned.status = JobStatus.FAILED
    return returned
