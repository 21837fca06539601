"""How the harness finds us. Subprocesses, because what is imported first matters."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from lmms_eval.tasks import TaskManager
from loguru import logger

from lmms_eval_plugin.manifest import TASKS_FOLDER, show_tasks

OUR_TASKS = [
    "bimba_egoschema",
    "bimba_egoschema_subset",
    "bimba_longvideobench_val_v",
    "bimba_mlvu_dev",
    "bimba_needle",
    "bimba_needle_counting",
    "bimba_needle_ordering",
    "bimba_needle_retrieval",
    "bimba_nextqa_mc_test",
    "bimba_perceptiontest_val_mc",
    "bimba_suite",
    "bimba_videomme",
    "vnbench",
]


def run_python(code: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_manifest_imports_neither_torch_nor_the_harness():
    code = "import sys, lmms_eval_plugin.manifest; print({'torch', 'lmms_eval', 'bimba'} & set(sys.modules))"
    assert run_python(code).strip() == "set()"


def test_the_harness_finds_model_and_tasks_even_if_the_manifest_was_imported_first():
    code = """
import lmms_eval_plugin.manifest
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager
print(get_model("bimba").__module__)
print(TaskManager(include_defaults=False).all_tasks)
"""
    assert run_python(code).splitlines()[-2:] == [
        "lmms_eval_plugin.models.bimba",
        str(sorted([*OUR_TASKS, *(f"{task}_choose" for task in OUR_TASKS)])),
    ]


def test_the_folder_for_include_path_is_printed():
    done = subprocess.run([sys.executable, "-m", "lmms_eval_plugin.manifest"], capture_output=True, text=True)
    assert done.stdout.strip() == str(TASKS_FOLDER)
    assert (TASKS_FOLDER / "bimba_needle" / "bimba_needle.yaml").is_file()


@pytest.mark.parametrize("include_path", [None, str(TASKS_FOLDER), [str(TASKS_FOLDER)]])
def test_the_hook_is_placed_once_and_bears_the_flag(monkeypatch, include_path):
    folders = []

    def initialize_tasks(self, include_path=None, include_defaults=True):
        folders.append(include_path)
        return {}

    monkeypatch.setattr(TaskManager, "initialize_tasks", initialize_tasks)
    show_tasks()
    placed = TaskManager.initialize_tasks
    show_tasks()
    assert TaskManager.initialize_tasks is placed
    TaskManager(include_path=include_path, include_defaults=False)
    assert folders == [[str(TASKS_FOLDER)]]


def test_the_users_own_folder_stays(monkeypatch):
    folders = []

    def initialize_tasks(self, include_path=None, include_defaults=True):
        folders.append(include_path)
        return {}

    monkeypatch.setattr(TaskManager, "initialize_tasks", initialize_tasks)
    show_tasks()
    TaskManager(include_path="mine")
    assert folders == [["mine", str(TASKS_FOLDER)]]


@pytest.mark.parametrize("change", ["gone", "other arguments"])
def test_a_changed_harness_is_warned_about_by_naming_the_flag(monkeypatch, change):
    if change == "gone":
        monkeypatch.delattr(TaskManager, "initialize_tasks")
    else:
        monkeypatch.setattr(TaskManager, "initialize_tasks", lambda self: {})
    messages: list[str] = []
    sink = logger.add(messages.append, level="WARNING", format="{message}")
    try:
        show_tasks()
    finally:
        logger.remove(sink)
    assert f"--include_path {TASKS_FOLDER}" in "".join(messages)
