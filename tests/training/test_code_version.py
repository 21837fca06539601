import json
import subprocess

import torch

from bimba.training.code_version import RecordCode, git_state
from bimba.training.loggers import CsvLogger
from tests.training.fakes import FakeData, tiny_module, tiny_trainer


def git(folder, *arguments):
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(folder), *names, *arguments], check=True, capture_output=True)


def test_the_commit_and_whether_the_files_differ_from_it(tmp_path):
    assert git_state(tmp_path) is None
    git(tmp_path, "init")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40 and not state["dirty"]
    (tmp_path / "notes.txt").write_text("not git's")
    assert git_state(tmp_path) == state
    (tmp_path / "code.py").write_text("2")
    assert git_state(tmp_path) == {**state, "dirty": True}


def test_a_machine_without_git_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None


class Facts(CsvLogger):
    facts = None

    def log_facts(self, facts):
        self.facts = facts


def test_a_run_records_code_and_configuration(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    module, logger = tiny_module(), Facts(tmp_path)
    trainer = tiny_trainer(tmp_path, 1, [RecordCode(tmp_path)])
    trainer.loggers = [logger]
    trainer.fit(module, FakeData(module.processor))
    code = json.loads((tmp_path / "code.json").read_text())
    assert code["packages"]["torch"] == torch.__version__.split("+")[0]
    assert code["bimba"] and code["command"] and code["world_size"] == 1
    assert logger.facts == {"code": code, "config": {"seed": 3}}
