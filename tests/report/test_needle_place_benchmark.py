"""Accuracy by the place of the needle, as benchmarks/needle_place.py counts it."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks/needle_place.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("needle_place_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path):
    """Clips of 96 frames whose needle begins at 0, 23, 24 and 95, and one with two needles."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": {"num_video_frames": 96}}))
    needles = [[{"start": start}] for start in (0, 23, 24, 95)] + [[{"start": 0}, {"start": 50}]]
    clips = [{"id": f"clip{i}", "needles": one} for i, one in enumerate(needles)]
    (folder / "annotations.json").write_text(json.dumps(clips))
    return folder


def write_answers(run, right):
    folder = run / "evaluation" / "test" / "samples"
    folder.mkdir(parents=True)
    samples = [{"doc": {"id": f"clip{i}"}, "accuracy": value} for i, value in enumerate(right)]
    (folder / "task.json").write_text(json.dumps({"samples": samples}))


def test_each_quarter_over_all_cells_of_an_argument(benchmark, data, tmp_path, capsys):
    write_answers(tmp_path / "sweep" / "seed=1", [1.0, 0.0, 1.0, 0.0, 1.0])
    write_answers(tmp_path / "sweep" / "seed=2", [1.0, 1.0, 1.0, 0.0, 1.0])
    assert benchmark.main([str(tmp_path / "sweep"), str(tmp_path / "none"), "--data", str(data)]) == 0
    heading, sweep, none = capsys.readouterr().out.splitlines()
    assert heading.split() == ["quarter", "1", "quarter", "2", "quarter", "3", "quarter", "4"]
    # Two clips in the first quarter, of which the second was missed once; nothing in the third.
    assert sweep.split() == ["sweep", "75.0", "(30.1-95.4)", "100.0", "(34.2-100.0)", "-", "0.0", "(0.0-65.8)"]
    assert "no evaluation 'test'" in none


def test_a_folder_without_clips(benchmark, tmp_path, capsys):
    assert benchmark.main([str(tmp_path), "--data", str(tmp_path)]) == 2
    assert "Expected --data to be a folder of needle clips" in capsys.readouterr().err
