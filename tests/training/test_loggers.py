import csv
import json
import resource
import sys
import types

import lightning as L
import numpy as np
import pytest
import wandb
from PIL import Image

from bimba.training.loggers import CsvLogger, Example, TrackioLogger, base, has_wandb_key, wandb_logger
from bimba.training.loggers.tensorboard import TensorBoardLogger
from tests.training.fakes import FakeData, read_metrics, tiny_module, tiny_trainer
from tests.training.wandb_run import read_wandb
from tests.training.wandb_server import wandb_server


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "")  # so that the variable, which Lightning sets, is put back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()  # wandb reads the environment once per process, so no test may leave it what this one sets
    yield tmp_path / "netrc"
    wandb.teardown()


def test_no_key(no_key):
    assert not has_wandb_key()


def test_key_in_the_environment(no_key, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_key()


def test_key_in_netrc_for_this_server_only(no_key, monkeypatch):
    no_key.write_text("machine api.wandb.ai\n  login user\n  password " + "0" * 40 + "\n")
    no_key.chmod(0o600)
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_wandb_key()


def test_a_broken_netrc_is_no_key_and_says_so(no_key, caplog):
    no_key.write_text("machine\n")
    assert not has_wandb_key()
    assert "netrc" in caplog.text


def test_wandb_is_offline_without_a_key_and_logs_all_the_same(no_key, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = wandb_logger(tmp_path, project="test")
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.experiment.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_wandb_is_online_with_a_key_and_as_wandb_mode_says(no_key, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert not wandb_logger(tmp_path, project="test")._offline
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert not wandb_logger(tmp_path, project="test")._offline


def test_the_csv_file_lies_directly_in_the_run_folder(tmp_path):
    logger = CsvLogger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,train/loss", "0,1.0"]


def test_new_columns_may_come_later(tmp_path):
    logger = CsvLogger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.log_metrics({"val/loss": 2.0}, step=0)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,train/loss,val/loss", "0,1.0,", "0,,2.0"]


def log_steps(logger, steps, **metrics):
    for step in steps:
        logger.log_metrics(metrics, step=step)


def test_a_resumed_run_goes_on_where_it_resumed(tmp_path):
    log_steps(CsvLogger(tmp_path), [0, 1, 2], **{"train/loss": 1.0})
    again = CsvLogger(tmp_path, resume="last.ckpt")
    log_steps(again, [2], **{"train/loss": 0.5})
    log_steps(again, [2], **{"val/loss": 2.0})
    expected = ["step,train/loss,val/loss", "0,1.0,", "1,1.0,", "2,0.5,", "2,,2.0"]
    assert (tmp_path / "metrics.csv").read_text().splitlines() == expected


def test_a_row_that_was_cut_off_is_dropped(tmp_path):
    log_steps(CsvLogger(tmp_path), [0, 1], **{"a": 1.0, "z": 2.0})
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "1.0")  # and not yet the step
    log_steps(CsvLogger(tmp_path, resume="last.ckpt"), [2], **{"a": 3.0})
    assert path.read_text().splitlines() == ["a,step,z", "1.0,0,2.0", "1.0,1,2.0", "3.0,2,"]


@pytest.mark.parametrize("later", [{"a": 3.0}, {"b": 3.0}], ids=["a_row", "a_column"])
def test_rows_that_a_full_disk_refuses_are_written_later(tmp_path, caplog, later):
    logger = CsvLogger(tmp_path)
    log_steps(logger, [0], a=1.0)
    before = (tmp_path / "metrics.csv").read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 1, limits[1]))  # as far as a file may grow
    try:
        log_steps(logger, [1, 2], **later)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "metrics.csv").read_text() == before
    assert caplog.text.count("cannot be written") == 1
    log_steps(logger, [3], **later)
    expected = [{"step": "0", "a": "1.0"}]
    expected += [{"step": str(step), **{key: str(value) for key, value in later.items()}} for step in (1, 2, 3)]
    assert rows(tmp_path) == expected


def test_a_new_run_in_the_same_folder_starts_a_new_file(tmp_path):
    log_steps(CsvLogger(tmp_path), [0, 1, 2], **{"train/loss": 1.0})
    log_steps(CsvLogger(tmp_path), [0], **{"val/loss": 0.5})
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,val/loss", "0,0.5"]


def rows(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def test_what_is_added_to_a_step_joins_its_row(tmp_path):
    logger = CsvLogger(tmp_path)
    logger.add_metrics({"speed/mfu": 0.5}, step=0)
    logger.add_metrics({"needle/score": 0.25}, step=0)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.log_metrics({"val/loss": 2.0}, step=0)
    assert rows(tmp_path) == [
        {"step": "0", "speed/mfu": "0.5", "needle/score": "0.25", "train/loss": "1.0"},
        {"step": "0", "val/loss": "2.0"},
    ]


def test_what_is_added_to_a_step_that_nobody_logs_is_a_row_of_its_own(tmp_path):
    logger = CsvLogger(tmp_path)
    logger.add_metrics({"needle/score": 0.25}, step=1)
    logger.log_metrics({"train/loss": 1.0}, step=2)
    logger.add_metrics({"needle/score": 0.5}, step=4)
    logger.add_metrics({"needle/score": 0.75}, step=5)
    logger.finalize("success")
    assert rows(tmp_path) == [
        {"step": "1", "needle/score": "0.25"},
        {"step": "2", "train/loss": "1.0"},
        {"step": "4", "needle/score": "0.5"},
        {"step": "5", "needle/score": "0.75"},
    ]


def examples():
    frames = np.zeros((3, 4, 5, 3), np.uint8)
    frames[1] = 255
    return [Example("Which?", "A", "A", frames), Example("Why?", "No.", "Yes.", np.empty((0, 1, 1, 3), np.uint8))]


def test_the_csv_logger_writes_examples_to_files(tmp_path):
    CsvLogger(tmp_path).log_examples("predictions", examples(), step=7)
    folder = tmp_path / "examples/predictions/step_000007"
    written = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in written] == ["A", "Yes."]
    assert [row["frames"] for row in written] == ["0.png", None]
    strip = np.asarray(Image.open(folder / "0.png"))
    assert strip.shape == (4, 15, 3)
    assert (strip[:, 5:10] == 255).all() and not strip[:, :5].any()


def test_a_wandb_offline_run_is_opened_from_its_folder(no_key, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = wandb_logger(tmp_path, project="test")
    logger.log_facts({"code": {"git": {"commit": "abc", "dirty": True}}, "config": {"seed": 3}})
    logger.add_metrics({"speed/mfu": 0.5}, step=7)
    logger.log_examples("predictions", examples(), step=7)
    logger.experiment.finish()
    run = read_wandb(tmp_path)
    assert run.values["speed/mfu"] == [0.5]
    assert run.values["trainer/global_step"] == [7, 7]
    assert run.config["code"]["git"] == {"commit": "abc", "dirty": True}
    assert run.config["config"] == {"seed": 3}
    (table,) = run.folder.glob("files/media/table/*.json")
    assert json.loads(table.read_text())["data"][1] == [7, "Why?", "No.", "Yes.", False]
    (picture,) = run.folder.glob("files/media/images/**/*.png")
    assert Image.open(picture).size == (15, 4)


def test_without_a_way_to_the_server_a_run_goes_on_offline(no_key, tmp_path, monkeypatch, caplog):
    address = "http://127.0.0.1:9"  # a port of this machine that refuses
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", address)
    module = tiny_module()
    trainer = tiny_trainer(tmp_path, 2, callbacks=[])
    trainer.loggers = [*trainer.loggers, wandb_logger(tmp_path, project="test")]
    trainer.fit(module, FakeData(module.processor))
    trainer.loggers[1].experiment.finish()
    assert trainer.global_step == 2
    assert f"{address} does not answer" in caplog.text
    assert "wandb sync" in caplog.text
    assert read_wandb(tmp_path).values["train/loss"] == pytest.approx(read_metrics(tmp_path)["train/loss"])


def test_a_server_that_is_lost_in_the_middle_of_a_run_gets_all_of_it_when_it_is_back(no_key, tmp_path, monkeypatch):
    """Training goes on meanwhile."""
    steps = 5
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    soon = {"x_file_stream_transmit_interval": 0.1, "x_file_stream_retry_wait_min_seconds": 0.1,
            "x_file_stream_retry_wait_max_seconds": 0.2}  # fmt: skip
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        logger = wandb_logger(tmp_path, project="test", settings=wandb.Settings(**soon))

        class Losing(L.Callback):
            def on_train_batch_end(self, trainer, *_):
                server.is_lost = True
                assert trainer.global_step != 2 or server.was_asked_while_lost.wait(60)

        module = tiny_module()
        trainer = tiny_trainer(tmp_path, steps, callbacks=[Losing()])
        trainer.loggers = [*trainer.loggers, logger]
        trainer.fit(module, FakeData(module.processor))
        assert trainer.global_step == steps
        assert not any(row.get("trainer/global_step") == steps - 1 for row in server.history)
        server.is_lost = False
        logger.experiment.finish()
        found = [row["train/loss"] for row in server.history if "train/loss" in row]
    assert logger.experiment.settings.mode == "online"
    assert found == pytest.approx(read_metrics(tmp_path)["train/loss"])
    assert len(found) == steps


def test_a_server_that_answers_is_used(no_key, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("requests.head", lambda server, timeout: asked.append(server))
    logger = wandb_logger(tmp_path, project="test")
    logger._go_offline_if_unreachable()
    assert asked == ["https://api.wandb.ai"]
    assert "mode" not in logger._wandb_init


class Recorder:
    """Takes any call, and remembers it."""

    def __init__(self):
        self.calls = []
        self.config = {}

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **keywords: self.calls.append((name, arguments, keywords))


def test_tensorboard_shows_examples_as_text_and_pictures():
    class Logger(TensorBoardLogger):
        experiment = Recorder()

        def __init__(self):
            pass

    logger = Logger()
    logger.log_examples("predictions", examples(), step=7)
    logger.log_facts({"code": {"git": None}})
    assert [name for name, *_ in logger.experiment.calls] == ["add_text", "add_image", "add_text", "add_text"]
    _, (tag, picture, step), keywords = logger.experiment.calls[1]
    assert (tag, picture.shape, step, keywords) == ("predictions/0", (4, 15, 3), 7, {"dataformats": "HWC"})
    assert "**Prediction**: Yes." in logger.experiment.calls[2][1][1]
    assert logger.experiment.calls[3][1][0] == "code"


def test_trackio_stays_on_this_machine_and_shows_examples_in_a_table(tmp_path, monkeypatch):
    run, begun = Recorder(), []
    trackio = types.ModuleType("trackio")
    trackio.init = lambda **keywords: begun.append(keywords) or run
    trackio.Image = lambda picture: ("image", picture.size)
    trackio.Table = lambda columns, data: data
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setattr(base, "find_spec", lambda package: True)
    logger = TrackioLogger(tmp_path / "2026/run", "bimba")
    logger.log_facts({"config": {"seed": 3}})
    logger.log_metrics({"train/loss": 1.0}, step=2)
    logger.log_examples("predictions", examples(), step=7)
    logger.finalize("success")
    (settings,) = begun
    assert (settings["project"], settings["name"], settings["space_id"]) == ("bimba", "2026-run", None)
    assert run.config == {"config": {"seed": 3}}
    (_, (metrics,), step), (_, (table,), _), (last, _, _) = run.calls
    assert (metrics, step) == ({"train/loss": 1.0}, {"step": 2})
    assert table["predictions"][0] == [("image", (15, 4)), "Which?", "A", "A", True]
    assert table["predictions"][1][0] is None
    assert last == "finish"
