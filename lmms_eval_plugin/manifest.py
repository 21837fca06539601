"""What lmms-eval reads at start-up: our model's name, and where our tasks are. Imports no torch.

``python -m lmms_eval_plugin.manifest`` prints the folder of the tasks, for ``lmms-eval --include_path``.
"""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

TASKS_FOLDER = Path(__file__).resolve().parent / "tasks"
_MARK = "_shows_bimba_tasks"


def manifests() -> list[ModelManifest]:
    """Entry point ``lmms_eval.models``: the harness calls this while ``lmms_eval.models`` is being imported."""
    # Imported here: at module level it would load a half-initialised lmms_eval.models if this module came first,
    # and the harness would then drop the model without an error.
    from lmms_eval.models.registry_v2 import ModelManifest

    show_tasks()
    return [ModelManifest(model_id="bimba", chat_class_path="lmms_eval_plugin.models.bimba.Bimba")]


def show_tasks() -> None:
    """Makes the harness look for tasks in ``TASKS_FOLDER`` too, so that no ``--include_path`` is needed.

    The harness has entry points for models but none for tasks, so this wraps the method that lists the folders. If a
    later harness has no such method, everything else still works and a warning names the flag that is then needed.
    """
    try:
        from lmms_eval.tasks import TaskManager

        original = TaskManager.initialize_tasks
        if "include_path" not in inspect.signature(original).parameters:
            raise AttributeError("TaskManager.initialize_tasks takes no include_path")
    except (ImportError, AttributeError) as error:
        from loguru import logger

        logger.warning(
            f"lmms-eval has changed ({error}); BIMBA's tasks are found only with `--include_path {TASKS_FOLDER}`."
        )
        return
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def initialize_tasks(
        self: TaskManager, include_path: str | list[str] | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        folders = [include_path] if isinstance(include_path, str) else list(include_path or [])
        if str(TASKS_FOLDER) not in folders:
            folders.append(str(TASKS_FOLDER))
        return original(self, folders, *args, **kwargs)

    setattr(initialize_tasks, _MARK, True)
    TaskManager.initialize_tasks = initialize_tasks


if __name__ == "__main__":
    print(TASKS_FOLDER)
