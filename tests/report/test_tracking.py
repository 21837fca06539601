from __future__ import annotations

import csv
import json

import pytest
from harness import make_evaluation

from bimba.report.measures import Measure
from bimba.report.tracking import log_evaluation, numbers
from bimba.training.loggers import CsvLogger, wandb_logger


@pytest.fixture
def evaluation(film):
    return make_evaluation(video=film)


def test_numbers_are_those_of_the_report(evaluation):
    found = numbers(evaluation)
    assert found["quiz/strict_accuracy"] == 0.5
    assert (found["quiz/strict_accuracy_low"], found["quiz/strict_accuracy_high"]) == pytest.approx(
        (0.2152, 0.7848), abs=1e-4
    )
    assert found["quiz/published"] == 64.67
    assert found["quiz/kind/long"] == 0.5
    assert found["throughput/questions_per_s"] == 1.0
    assert (found["complete"], found["failed_tasks"]) == (1.0, 0)


def test_an_interval_has_the_scale_of_its_metric(evaluation):
    of_100 = Measure("stock", 62.5, fraction=0.625, low=0.3, high=0.8, n=8, over="questions")
    evaluation.tasks[0].measures.append(of_100)
    found = numbers(evaluation)
    bounds = [found[f"quiz/stock{name}"] for name in ("_low", "", "_high")]
    assert bounds == pytest.approx([30, 62.5, 80])


def test_of_a_value_of_0_the_scale_is_not_known(evaluation):
    evaluation.tasks[0].measures.append(Measure("no_letter", 0.0, 0.0, low=0.0, high=0.3, n=8, over="questions"))
    assert [key for key in numbers(evaluation) if "no_letter" in key] == ["quiz/no_letter"]


def test_csv_holds_the_numbers(evaluation, tmp_path):
    log_evaluation([CsvLogger(tmp_path)], evaluation)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert {name: float(value) for name, value in row.items()} == {"step": 0.0, **numbers(evaluation)}


def test_wandb_holds_numbers_plots_frames_and_answers_offline(evaluation, tmp_path, monkeypatch):
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_evaluation([wandb_logger(tmp_path, project="test")], evaluation)
    wandb.teardown()  # as at the end of a process: its service has written all when this returns

    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    store = DataStore()
    store.open_for_scan(str(path))
    history, config = {}, {}
    while data := store.scan_data():
        record = Record.FromString(data)
        for item in record.history.item:
            history["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        for item in record.config.update:
            config["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    for name, value in numbers(evaluation).items():
        assert history[name] == pytest.approx(value), name
    assert history["plots/overview/_type"] == history["plots/quiz/_type"] == "image-file"
    assert history["frames/quiz/count"] == 4
    assert {history[f"{table}/_type"] for table in ("scores", "answers")} == {"table-file"}
    assert config["fingerprint"] == "0123456789abcdef"
    files = path.parent / "files"
    answers = json.loads((files / history["answers/path"]).read_text())
    assert answers["data"][0][:4] == ["quiz", 1, "film.mp4", "right"]
    assert (files / history["plots/overview/path"]).is_file()
