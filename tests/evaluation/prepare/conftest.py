"""Miniatures of ``HF_HOME`` for ``bimba prepare``: complete, empty, or to be spoiled; the hub is the stand-in."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from homes import NOWHERE
from lmms_eval.api.task import _resolve_hf_datasets_cache_dir
from replicas import write_hub

from bimba import cli
from lmms_eval_plugin.miniature import write_home


@pytest.fixture(scope="session")
def complete(tmp_path_factory) -> Path:
    """An HF_HOME with everything. Tests work on copies."""
    home = tmp_path_factory.mktemp("prepare") / "home"
    write_home(home)
    return home


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("prepare") / "hub"
    write_hub(root)
    return root


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A user without HF_HOME and token, a hub that does not answer, and modules that have not read HF_HOME yet."""
    import huggingface_hub.constants

    for name in ("HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "BIMBA_VNBENCH_ROOT"):
        monkeypatch.setenv(name, "unset by the test")  # so that what the command sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # as tests/conftest.py has it
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "user/token"))
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if _reads_home(name)}
    _resolve_hf_datasets_cache_dir.cache_clear()
    yield
    _resolve_hf_datasets_cache_dir.cache_clear()
    for name in list(sys.modules):
        if _reads_home(name):
            del sys.modules[name]
    sys.modules.update(held)


def _reads_home(module: str) -> bool:
    ours = module.startswith("lmms_eval_plugin.tasks.") and module.endswith(".task")
    return ours or (module.startswith("lmms_eval.tasks.") and module.endswith(".utils"))


@pytest.fixture
def home(complete, tmp_path, monkeypatch) -> Path:
    """A complete HF_HOME to spoil."""
    folder = tmp_path / "home"
    shutil.copytree(complete, folder)
    monkeypatch.setenv("HF_HOME", str(folder))
    return folder


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.setenv("HF_HOME", str(folder))
    return folder


@pytest.fixture
def prepare(capsys, tmp_path):
    """Runs the command: exit code, what it printed, and the JSON as benchmark -> item -> (ok, state, todo)."""

    def run(*arguments: str) -> tuple[int, str, dict]:
        path = tmp_path / "findings.json"
        path.unlink(missing_ok=True)
        code = cli.main(["prepare", *arguments, "--json", str(path)])
        found = json.loads(path.read_text()) if path.exists() else {}
        items = {
            name: {item["what"]: (item["ok"], item["state"], item["todo"]) for item in report["items"]}
            for name, report in found.items()
        }
        captured = capsys.readouterr()
        return code, captured.out + captured.err, items

    return run
