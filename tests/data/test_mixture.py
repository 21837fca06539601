"""LLaVA-NeXT's mixture files: what they name, what is taken of it, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from bimba.data.mixture import Mixture, Take, read_mixture
from bimba.types import BimbaError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a1.json", "a2.json", "b1.jsonl", "b2.jsonl", "c.txt"):
        (tmp_path / name).write_text("[]")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "d.json").write_text("[]")
    return tmp_path


def names(mixture: Mixture) -> list[str]:
    return [source.path.name for source in mixture.sources]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a1.json", ["a1.json"]),
        ("{a2,a1}.json", ["a2.json", "a1.json"]),  # in the order of the braces
        ("{a1.json, b2.jsonl}", ["a1.json", "b2.jsonl"]),
        ("{a1.json,b{1,2}.jsonl}", ["a1.json", "b1.jsonl", "b2.jsonl"]),
        ("a?.json", ["a1.json", "a2.json"]),
        ("{a,b}*.json*", ["a1.json", "a2.json", "b1.jsonl", "b2.jsonl"]),
        ("deep/**/*.json", ["d.json"]),
    ],
)
def test_braces_and_globs(folder, pattern, expected):
    assert names(read_mixture([{"json_path": str(folder / pattern)}])) == expected


def test_a_file_whose_name_looks_like_a_pattern(folder):
    (folder / "x[1].json").write_text("[]")
    assert names(read_mixture([{"json_path": str(folder / "x[1].json")}])) == ["x[1].json"]


def test_relative_paths_start_at_the_mixture_or_at_the_root(folder, tmp_path):
    (folder / "mix.yaml").write_text(yaml.safe_dump({"datasets": [{"json_path": "a1.json", "image_folder": "deep"}]}))
    mixture = read_mixture(folder / "mix.yaml", video_root=folder)
    (source,) = mixture.sources
    assert (source.path, source.image_folder, source.video_folder) == (folder / "a1.json", folder / "deep", None)
    assert (mixture.video_root, mixture.image_root) == (folder, folder)
    (folder / "mix.yaml").write_text(yaml.safe_dump({"datasets": [{"json_path": "d.json"}]}))
    mixture = read_mixture(folder / "mix.yaml", annotation_root=folder / "deep" / "er", image_root=folder / "deep")
    assert mixture.sources[0].path == folder / "deep" / "er" / "d.json"
    assert (mixture.video_root, mixture.image_root) == (None, folder / "deep")


@pytest.mark.parametrize(
    ("strategy", "total", "expected"),
    [
        ("all", 5, [0, 1, 2, 3, 4]),
        ("first", 3, [0, 1, 2]),
        ("first:2", 5, [0, 1]),
        ("first:9", 5, [0, 1, 2, 3, 4]),
        ("end:2", 5, [3, 4]),
        ("end:30%", 5, [3, 4]),  # rounded up
        ("first:50%", 3, [0, 1]),
        ("first:7%", 100, list(range(7))),  # 7 * 100 / 100 is a little more than 7 in floating point
        ("first:0.1%", 10, [0]),
        ("end:100%", 2, [0, 1]),
    ],
)
def test_what_is_taken(strategy, total, expected):
    assert Take.parse(strategy).rows(total).tolist() == expected
    assert str(Take.parse(strategy)) == strategy


def test_random_rows_are_the_same_every_time_and_of_the_whole_file():
    take = Take.parse("random:10%")
    drawn = take.rows(1000)
    assert len(drawn) == len(set(drawn)) == 100
    assert (np.diff(drawn) > 0).all()
    assert drawn[-1] > 900
    assert drawn[0] < 100
    assert take.rows(1000).tolist() == drawn.tolist() != take.rows(1000, position=1).tolist()
    assert Take.parse("random").rows(4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("first:101%", "at most 100 %"),
        ("first:0", "more than none"),
        ("first:-3", "more than none"),
        ("end:0%", "more than none"),
        ("first:nan%", "more than none"),
        ("first:x", "expected all, or first, end or random"),
        ("first:1.5", "expected all, or first"),
        ("some", "sampling_strategy is 'some'"),
        ("all:3", "sampling_strategy is 'all:3'"),
        (None, "sampling_strategy is None"),
    ],
)
def test_strategies_that_are_none(strategy, message):
    with pytest.raises(BimbaError, match=message):
        Take.parse(strategy)


def test_everything_that_is_wrong_is_listed(folder):
    entries = [
        {"json_path": "a1.json"},
        {"json_path": "{a1,nowhere}.json"},
        {"json_path": "a1.json", "sampling_strategy": "first:200%"},
        {"path": "a1.json"},
        {"json_path": "a1.json", "sampling": "all"},
        {"json_path": "a2.json", "image_folder": "pictures"},
        {"json_path": "none/*.json"},
        {"json_path": "c.txt"},
        "a1.json",
    ]
    with pytest.raises(BimbaError) as caught:
        read_mixture(entries, video_root=folder / "videos", annotation_root=folder)
    lines = str(caught.value).splitlines()
    assert lines[0] == "data.mixture: 9 of its parts cannot be used."
    assert f"entry 2: {folder / 'nowhere.json'}: no such annotation file" in lines[1]
    for line, number, words in zip(
        lines[2:],
        range(3, 10),
        (
            "at most 100 %",
            "has no 'json_path'",
            "nobody reads sampling;",
            "pictures: no such folder",
            "none/*.json: no such annotation file",
            "expected files that end in .json or .jsonl",
            "has no 'json_path'",
        ),
        strict=False,
    ):
        assert line.startswith(f"  entry {number}: ")
        assert words in line
    assert lines[-1] == f"  {folder / 'videos'}: no such folder."


@pytest.mark.parametrize("content", ["", "datasets: []", "[]", "other: 1", "datasets: text"])
def test_an_empty_mixture(folder, content):
    (folder / "mix.yaml").write_text(content)
    with pytest.raises(BimbaError, match=r"mix\.yaml: no data sets\. Expected 'datasets'"):
        read_mixture(folder / "mix.yaml")


def test_a_mixture_that_is_none(folder):
    (folder / "mix.yaml").write_text("datasets: [")
    with pytest.raises(BimbaError, match=r"mix\.yaml: not valid YAML"):
        read_mixture(folder / "mix.yaml")
    with pytest.raises(BimbaError, match=r"nowhere\.yaml: no such mixture"):
        read_mixture(folder / "nowhere.yaml")
    with pytest.raises(BimbaError, match=r"data\.mixture: no data sets"):
        read_mixture([])


def test_one_file_needs_its_folder(folder):
    (folder / "rows.json").write_text(json.dumps([]))
    mixture = Mixture.of_file(folder / "rows.json", folder)
    assert mixture.sources[0].video_folder == mixture.sources[0].image_folder == folder
    with pytest.raises(BimbaError, match="nowhere: no such folder"):
        Mixture.of_file(folder / "rows.json", folder / "nowhere")


def test_a_folder_that_is_no_path(folder):
    with pytest.raises(BimbaError, match="entry 1: video_folder is 7; expected the path of a folder"):
        read_mixture([{"json_path": str(folder / "a1.json"), "video_folder": 7}])
