"""The harness as a library: it runs tasks, and what it says when it cannot is turned into one line."""

from __future__ import annotations

import argparse
import errno
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimba.report.files import unwritten
from bimba.types import BimbaError, user_error
from lmms_eval_plugin.prepare.sources import hint
from lmms_eval_plugin.ranks import is_first

if TYPE_CHECKING:
    from lmms_eval.tasks import TaskManager

    from lmms_eval_plugin.models.bimba import Bimba


def run_harness(
    model: Bimba, tasks: Sequence[str], checkpoint: str, folder: Path, batch_size: int, limit: float | None
) -> dict[str, Any] | None:
    """The harness's results, with every answer under ``samples``; None on all processes but the first.

    Args:
        checkpoint: its name, for the harness's record.
        folder: where tasks write files.
        limit: only the first questions of each task; None: all.

    Raises:
        BimbaError: there is no such task, or the harness stopped without results.
    """
    from lmms_eval.evaluator import simple_evaluate
    from tenacity import RetryError

    manager = _task_manager(tasks)
    try:
        results = simple_evaluate(
            model=model,
            model_args=f"pretrained={checkpoint}",
            tasks=list(tasks),
            batch_size=batch_size,
            device=str(model.device),
            limit=limit,
            task_manager=manager,
            bootstrap_iters=0,
            distributed_executor_backend="torchrun",  # with several processes: the group of lmms_eval_plugin/ranks.py
            # Tasks that write files ask these for the folder; the other one is what the command's own default is.
            cli_args=argparse.Namespace(output_path=str(folder), process_with_media=False),
        )
    except SystemExit as stop:  # tasks of the harness leave so when a video is missing, some of them with code 0
        raise BimbaError(f"The harness stopped before it had results: {stop.code}.") from stop
    except FileNotFoundError as absent:  # subtitles, for example
        raise BimbaError(f"The harness misses a file: {absent}.{hint(tasks)}") from absent
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise unwritten(folder, error) from error
    except RetryError as error:  # what the harness makes of every error about data, after five tries
        why = error.last_attempt.exception()
        raise BimbaError(f"The harness has no data ({type(why).__name__}: {why}).{hint(tasks)}") from error
    except ImportError as error:  # what it makes of every error in a task's module
        if (known := user_error(error)) is None:
            raise
        raise BimbaError(str(known)) from error
    if is_first() and not (results and results.get("samples")):
        raise BimbaError("The harness returned no answers: no task ran. Its log above says why.")
    return results


def _task_manager(tasks: Sequence[str]) -> TaskManager:
    """One that knows the tasks."""
    from lmms_eval.tasks import TaskManager

    # Reading the harness's own two thousand task files takes seconds: only if a task is not ours.
    manager = TaskManager(include_defaults=False, model_name="bimba")
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(model_name="bimba")
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise BimbaError(f"The harness has no task {', '.join(unknown)}; `lmms-eval --tasks list` prints all names.")
    return manager
