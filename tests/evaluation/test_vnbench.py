"""VNBench's annotation in its two published forms, and its two scores."""

from __future__ import annotations

import json

import pytest
from loguru import logger
from replicas import golden, write_vnbench

from bimba.types import BimbaError
from lmms_eval_plugin.tasks.vnbench.annotations import TYPES, find_annotation, find_root, find_video, load_questions
from lmms_eval_plugin.tasks.vnbench.task import aggregate_all_tries, doc_to_text, process_results

ROW = {
    "video": "/VNBench_new/cnt_edit1_7.mp4",
    "question": "How many?",
    "options": ["1", "2", "3", "4"],
    "gt": "3",
    "type": "cnt_edit1",
    "try": 0,
}


DOC = {"id": "0", "question": "How many?", "group": 3, "type": "cnt_edit1"}


def write(root, *rows, name="VNBench-main-4try.json"):
    (root / name).write_text(json.dumps(rows))
    return root


def test_the_published_annotation_becomes_plain_questions(tmp_path):
    (question,) = load_questions(write(tmp_path, ROW))
    assert question == {
        "id": "0",
        "video": str(tmp_path / "VNBench_new/cnt_edit1_7.mp4"),
        "question": "How many?",
        "options": ["1", "2", "3", "4"],
        "answer": "C",
        "type": "cnt_edit1",
        "group": 0,
    }


def test_the_originals_file_says_the_same(tmp_path):
    lettered = {
        "id": 12,
        "video": "VNBench_new/cnt_edit1_7.mp4",
        "question": "How many?",
        "question_type": "cnt_edit1",
        "candidates": ["A. 1", "B. 2", "C. 3", "D. 4"],
        "answer": "C",
    }
    (theirs,) = load_questions(write(tmp_path, lettered, name="formatted_dataset_4try.json"))
    (published,) = load_questions(write(tmp_path, ROW))
    assert theirs == {**published, "id": "12"}


def test_prompts_of_both_forms_are_golden(tmp_path):
    write_vnbench(tmp_path)
    assert {doc_to_text(question) for question in load_questions(tmp_path)} == {golden(4)[2]}


def test_tries_are_grouped_by_video_and_question(tmp_path):
    rows = [ROW, {**ROW, "gt": "1"}, {**ROW, "question": "Which?"}, {**ROW, "video": "b.mp4"}, ROW]
    assert [question["group"] for question in load_questions(write(tmp_path, *rows))] == [0, 0, 1, 2, 0]


def test_the_type_is_that_of_the_file_where_the_annotation_confuses_two(tmp_path):
    rows = [{**ROW, "video": f"{name}.mp4", "type": "ret_insert2"} for name in ("ret_insert1_3", "film", "ret_insert2")]
    kinds = [question["type"] for question in load_questions(write(tmp_path, *rows))]
    assert kinds == ["ret_insert1", "ret_insert2", "ret_insert2"]


@pytest.mark.parametrize("place", ["VNBench_new/a.mp4", "videos/a.mp4", "a.mp4"])
def test_where_videos_are_looked_for(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    assert find_video(tmp_path, "/VNBench_new/a.mp4") == str(tmp_path / place)


def test_the_folder_is_named_or_beside_the_other_benchmarks(tmp_path, monkeypatch):
    (tmp_path / "home/vnbench").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BIMBA_VNBENCH_ROOT", "")
    assert find_root() == tmp_path / "home/vnbench"
    monkeypatch.setenv("BIMBA_VNBENCH_ROOT", str(tmp_path / "elsewhere"))
    assert find_root() == tmp_path / "elsewhere"
    monkeypatch.setenv("BIMBA_VNBENCH_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(BimbaError, match="nowhere is not a folder.*VNBench-main-4try.json.*BIMBA_VNBENCH_ROOT"):
        find_root()
    monkeypatch.delenv("BIMBA_VNBENCH_ROOT")
    monkeypatch.delenv("HF_HOME")
    with pytest.raises(BimbaError, match="Neither BIMBA_VNBENCH_ROOT nor HF_HOME"):
        find_root()


@pytest.mark.parametrize("names", [[], ["a.json", "b.json"]])
def test_a_missing_annotation_is_named(tmp_path, names):
    for name in names:
        write(tmp_path, ROW, name=name)
    with pytest.raises(BimbaError, match=f"no VNBench-main-4try.json and {len(names)} other"):
        find_annotation(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "gt": "5"}, "row 0: not a question of VNBench"),
        ({**ROW, "options": ["3"]}, "1 options, expected 2 to 26"),
        ({**ROW, "options": ["3"] * 27}, "27 options, expected 2 to 26"),
        ({**ROW, "type": "new", "video": "film.mp4"}, "the type 'new' is none of"),
        ({"video": "a.mp4"}, "KeyError"),
        ({**ROW, "candidates": ["A. 1", "B. 2"], "answer": "C", "question_type": "x", "id": 1}, "'C' is none of the 2"),
        ("text", "row 0: not a question of VNBench"),
    ],
)
def test_a_row_that_is_not_vnbenchs_is_named(tmp_path, row, message):
    with pytest.raises(BimbaError, match=message):
        load_questions(write(tmp_path, row))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not JSON"), (b"\xff[", "is not JSON"), (b"[]", "without rows"), (b"{}", "without rows")],
)
def test_a_file_that_is_not_vnbenchs_is_named(tmp_path, content, message):
    (tmp_path / "VNBench-main-4try.json").write_bytes(content)
    with pytest.raises(BimbaError, match=message):
        load_questions(tmp_path)


def test_an_id_that_is_there_twice_is_refused(tmp_path):
    row = {**ROW, "candidates": ["A. 1", "B. 2"], "answer": "A", "question_type": "cnt_edit1", "id": 7}
    with pytest.raises(BimbaError, match="1 ids twice, such as 7"):
        load_questions(write(tmp_path, row, row))


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "no_letter", "outside"),
    [
        ("C", 1, 1, 0, 0),
        ("C.", 1, 1, 0, 0),
        ("c", 1, 1, 0, 0),
        ("The answer is C.", 0, 1, 0, 0),
        ("3", 0, 1, 0, 0),
        ("A", 0, 0, 0, 0),
        ("E", 0, 0, 0, 1),
        ("", 0, 0, 1, 0),
    ],
)
def test_both_readings_of_an_answer(answer, strict, lenient, no_letter, outside):
    doc = {**DOC, "answer": "C", "options": ["1", "2", "3", "4"]}
    attempt = {"group": 3, "type": "cnt_edit1", "score": strict}
    assert process_results(doc, [answer]) == {
        "vnbench_per_try": strict,
        "vnbench_per_try_lenient": lenient,
        "vnbench_all_tries": attempt,
        "no_letter": no_letter,
        "outside_options": outside,
        "vnbench_per_try_cnt_edit1": strict,
        "vnbench_all_tries_cnt_edit1": attempt,
    }


def attempts(kind, *groups):
    return [
        {"group": f"{kind}{number}", "type": kind, "score": float(score)}
        for number, scores in enumerate(groups)
        for score in scores
    ]


def test_a_question_counts_when_all_four_tries_are_right():
    assert aggregate_all_tries(attempts("ord_edit1", "1111", "1101")) == 0.5


def test_types_count_alike():
    some = attempts("ord_edit1", "1111") + attempts("cnt_edit1", "0000", "1111", "1110", "0111")
    assert aggregate_all_tries(some) == (1 + 1 / 4) / 2


def test_fewer_than_four_tries_are_wrong_and_warned_about():
    messages: list[str] = []
    sink = logger.add(messages.append, level="WARNING", format="{message}")
    try:
        assert aggregate_all_tries(attempts("ord_edit1", "111", "1111")) == 0.5
    finally:
        logger.remove(sink)
    assert "1 of 2 questions were not asked 4 times" in "".join(messages)


def test_every_type_has_its_metrics():
    from lmms_eval.utils import load_yaml_config

    from lmms_eval_plugin.manifest import TASKS_FOLDER

    config = load_yaml_config(str(TASKS_FOLDER / "vnbench/vnbench.yaml"))
    metrics = [entry["metric"] for entry in config["metric_list"]]
    assert metrics == [
        *("vnbench_per_try", "vnbench_per_try_lenient", "vnbench_all_tries", "no_letter", "outside_options"),
        *(f"vnbench_{score}_{kind}" for score in ("per_try", "all_tries") for kind in TYPES),
    ]
