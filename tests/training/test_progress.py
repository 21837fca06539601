import io
import logging
import sys

import pytest
from rich.console import Console

from bimba.training.progress import StepProgress
from tests.training.fakes import FakeData, tiny_module, tiny_trainer


def fit(tmp_path, max_steps=6, **kwargs):
    module = tiny_module()
    trainer = tiny_trainer(tmp_path, max_steps, [StepProgress(lines=3)], **kwargs)
    trainer.fit(module, FakeData(module.processor))


def test_without_a_terminal_a_few_lines_are_printed(tmp_path, capsys):
    fit(tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["2/6", "4/6", "6/6"]
    assert "train/loss" in lines[0]
    assert lines[0].endswith("s/step")
    assert "val/exact_answers" in lines[2]


def test_a_step_of_several_batches_is_one_step(tmp_path, capsys):
    fit(tmp_path, max_steps=3, accumulate_grad_batches=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]


@pytest.fixture
def terminal(monkeypatch):
    screen = io.StringIO()
    make = lambda: Console(file=screen, force_terminal=True, width=160)  # noqa: E731
    monkeypatch.setattr("bimba.training.progress.Console", make)
    return screen


def test_in_a_terminal_it_is_a_bar_and_logging_is_given_back(tmp_path, terminal):
    handler = logging.StreamHandler(sys.__stderr__)
    logging.getLogger().addHandler(handler)
    try:
        fit(tmp_path)
    finally:
        logging.getLogger().removeHandler(handler)
    assert handler.stream is sys.__stderr__
    shown = terminal.getvalue()
    for text in ("6/6", "train/loss", "Validation"):
        assert text in shown


def test_the_bar_is_closed_when_the_run_fails(tmp_path, terminal):
    module = tiny_module()
    progress = StepProgress()
    trainer = tiny_trainer(tmp_path, 6, [progress])
    module.on_train_batch_end = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, FakeData(module.processor))
    assert progress._bar is None
