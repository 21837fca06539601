"""What train.py says of the error that ended a run, and what it exits with."""

from __future__ import annotations

import re
import sys
import traceback

from hydra.errors import HydraException
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf.errors import OmegaConfBaseException

from bimba.training.signals import Stopped
from bimba.training.together import Failed
from bimba.types import BimbaError, memory_error, user_error

LESS_MEMORY = (
    "Give a smaller data.batch_size (data.global_batch_size stays: the rest is accumulated), "
    "model.gradient_checkpointing=true, fewer model.config.num_frames, or trainer=fsdp on several GPUs. "
    "Files in the run's resume/ are kept: resume=<its folder> goes on from them."
)


def message_of(error: Exception) -> str:
    """One message for the user: the innermost ``BimbaError`` if there is one, else the error with its type."""
    if (known := user_error(error) or memory_error(error, LESS_MEMORY)) is not None:
        return f"error: {known}"
    # A key of a node that is built as it stands, such as trainer: Hydra says so in three lines.
    if unread := re.search(r"unexpected keyword argument '(\w+)'.*full_key: (\S+)", str(error), re.DOTALL):
        return f"error: Nobody reads {unread[2]}.{unread[1]}; remove it. `bimba train --help` lists the keys."
    return f"error: {error} (show_traceback=true shows where it comes from)"


def status_of_stopped(error: Exception) -> int | None:
    """What to exit with if a signal ended the run: 128 + its number, as shells have it; None for any other error.

    Only the first process says so: Lightning would kill it if another one seemed to have failed.
    """
    if not isinstance(error, Stopped):
        return None
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return 0
    print(error)
    return 128 + error.signum


def status_of_failed(error: Exception, show_traceback: bool) -> int | None:
    """What a process of several exits with if any of them failed, having said why if that is its own error."""
    if not isinstance(error, Failed):
        return None
    if isinstance(own := error.error, Exception) and is_for_the_user(own) and not show_traceback:
        print(message_of(own), file=sys.stderr)
    elif own is not None:
        traceback.print_exception(own)
    return error.status


def is_for_the_user(error: Exception) -> bool:
    """Whether an error comes from what was asked for, and not from a mistake in this code."""
    of_the_user = BimbaError | HydraException | OmegaConfBaseException | MisconfigurationException
    return isinstance(error, of_the_user) or memory_error(error, LESS_MEMORY) is not None
