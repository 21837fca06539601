"""Runs the commands of the docs, each in a process of its own that is forked from one with the imports done."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from importlib.metadata import entry_points
from multiprocessing import forkserver
from pathlib import Path

from tests.docs.fences import ROOT, Command

# What every training command gets, unless it only composes: seconds instead of minutes, the same code.
SCALED_DOWN = (
    "trainer.max_steps=1",
    "model.config.num_frames=8",
    "data.global_batch_size=2",
    "data.batch_size=1",
    "data.num_workers=0",
    "data.val_samples=2",
    "data.prepare.num_clips={train: 8, test: 10}",
    "data.prepare.workers=1",
    "callbacks.needle_probe.clips=2",
)
HEAVY = ["torch", "transformers", "lightning", "hydra", "peft", "lmms_eval.__main__", "bimba.training.build"]


class Shell:
    """A folder in which commands run, one after the other, with what earlier ones left there.

    Args:
        folder: an empty one; stands for the clone of the repository that a reader is in.
        names: what the words that a reader fills in stand for, such as VIDEO.
    """

    def __init__(self, folder: Path, names: dict[str, str]) -> None:
        self.folder = folder
        self.names = names
        self.done: dict[tuple[object, ...], tuple[int, str]] = {}
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(HEAVY)
        interpret = os.environ.pop("TRITON_INTERPRET", None)  # a reader has not set it, and Triton reads it on import
        forkserver.ensure_running()
        if interpret is not None:
            os.environ["TRITON_INTERPRET"] = interpret

    def run(self, command: Command) -> tuple[int, str]:
        """The exit code and all that was printed; of a command that ran before, what it was then."""
        words = [self.filled_in(word) for word in command.words]
        if words[:2] == ["python", "train.py"] and "--cfg" not in words:
            words += SCALED_DOWN
        key = (tuple(words), command.variables)
        if key not in self.done:
            self.done[key] = self._run(words, dict(command.variables))
        return self.done[key]

    def filled_in(self, word: str) -> str:
        """A word with the reader's part in it: VIDEO, checkpoint=CHECKPOINT."""
        key, equals, value = word.rpartition("=")
        return key + equals + self.names.get(value, value)

    def _run(self, words: list[str], variables: dict[str, str]) -> tuple[int, str]:
        output = self.folder / "output.txt"
        process = self.context.Process(target=_child, args=(words, variables, str(self.folder), str(output)))
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode, output.read_text(errors="replace")


def _child(words: list[str], variables: dict[str, str], folder: str, output: str) -> None:
    """In the new process: what a shell does with these words."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.update({"BIMBA_ROOT": folder, "PYTHONPATH": str(ROOT), **variables})
    os.chdir(folder)
    if words[0] == "python":
        script = ROOT / words[1]
        sys.argv = [str(script), *words[2:]]
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
    else:
        sys.argv = words
        (program,) = entry_points(group="console_scripts", name=words[0])
        sys.exit(program.load()())
