"""Where a run's numbers and pictures go: ``metrics.csv``, and beside it Weights & Biases, TensorBoard or Trackio.

Each is a Lightning logger with what :class:`~bimba.training.loggers.base.Dashboard` adds, so that whoever reports
something (``bimba.training.reporting``) need not know which of them listen. None sends anything anywhere unless asked.
"""

from bimba.training.loggers.base import Dashboard, Example
from bimba.training.loggers.csv_file import CsvLogger
from bimba.training.loggers.tensorboard import tensorboard_logger
from bimba.training.loggers.trackio import TrackioLogger
from bimba.training.loggers.wandb import WandbLogger, has_wandb_key, wandb_logger

__all__ = [
    "CsvLogger",
    "Dashboard",
    "Example",
    "TrackioLogger",
    "WandbLogger",
    "has_wandb_key",
    "tensorboard_logger",
    "wandb_logger",
]
