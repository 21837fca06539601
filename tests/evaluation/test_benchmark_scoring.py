"""What a task makes of an answer: the published strict reading, and the harness's own beside it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from replicas import PROMPTS

from bimba import cli
from bimba.report.accuracy import compare, harness_scores
from bimba.types import BimbaError
from lmms_eval_plugin.tasks.bimba_egoschema.submission import answer_index, read_predictions
from lmms_eval_plugin.tasks.published import stock_utils, strict

GOLDEN_READINGS = PROMPTS["fuzzy_matching"]
THREE = ["pear", "apple", "plum"]
UNIFORM = {  # task -> columns, with B the right answer
    "bimba_videomme": {
        **{"answer": "B", "domain": "Knowledge", "sub_category": "Law", "task_type": "OCR Problems"},
        **{"question_id": "1", "duration": "short", "videoID": "x", "question": "?"},
        "options": ["A. pear", "B. apple", "C. plum"],
    },
    "bimba_mlvu_dev": {"answer": "B", "task_type": "ego", "question": "?", "video_name": "x", "candidates": THREE},
    "bimba_longvideobench_val_v": {
        **{"correct_choice": 1, "id": "1", "duration_group": 15, "question_category": "T3E", "question": "?"},
        **{f"option{i}": text for i, text in enumerate([*THREE, "N/A", "N/A"])},
    },
    "bimba_nextqa_mc_test": {
        **{"answer": 1, "question": "?", "video": 1},
        **{f"a{i}": text for i, text in enumerate([*THREE, "fig", "nut"])},
    },
    "bimba_perceptiontest_val_mc": {"answer_id": "1", "video_name": "x", "question": "?", "options": THREE},
}
COUNTED = ("no_letter", "outside_options", "no_reference")


def task_of(name):
    return importlib.import_module(f"lmms_eval_plugin.tasks.{name}.task")


@pytest.mark.parametrize("letter", "ABCDE")
@pytest.mark.parametrize("answer", GOLDEN_READINGS)
def test_strict_is_the_originals_reading(answer, letter):
    assert strict(answer, letter) == (GOLDEN_READINGS[answer].lower() == letter.lower())


@pytest.mark.parametrize("task", UNIFORM)
@pytest.mark.parametrize(
    ("answer", "strict_right", "lenient_right", "counted"),
    [
        ("B", 1, 1, None),
        ("B.", 1, 1, None),
        ("A", 0, 0, None),
        ("The best answer is B", 0, 1, None),
        ("(B) is right", 0, 1, None),
        ("It is an apple.", 0, 1, None),
        ("It is a pear.", 0, 0, None),
        ("a cow", 0, 0, None),  # the strict reading takes its first word for a letter
        ("no idea", 0, 0, "no_letter"),
        ("", 0, 0, "no_letter"),
        ("Z", 0, 0, "outside_options"),
        ("The answer is (G).", 0, 0, "outside_options"),
    ],
)
def test_both_readings_of_each_task(offline, task, answer, strict_right, lenient_right, counted):
    found = task_of(task).process_results(UNIFORM[task], [answer])
    assert (found["strict_accuracy"], found["lenient_accuracy"]) == (strict_right, lenient_right)
    assert [name for name in COUNTED if found[name]] == ([counted] if counted else [])


REFERENCES = {
    "bimba_videomme": ("answer", ["D", "", None]),
    "bimba_mlvu_dev": ("answer", ["D", "", None, "apple"]),
    "bimba_longvideobench_val_v": ("correct_choice", [3, -1, 99, None]),
    "bimba_nextqa_mc_test": ("answer", [5, -1, None]),
    "bimba_perceptiontest_val_mc": ("answer_id", ["3", "-1", "", "B", None]),
}


@pytest.mark.parametrize(("task", "column", "wrong"), [(t, c, w) for t, (c, ws) in REFERENCES.items() for w in ws])
def test_a_document_whose_right_answer_is_no_option_counts_as_wrong(offline, task, column, wrong):
    """Whatever is answered; the harness's own scoring is not asked, as it could stop the run."""
    for answer in ("B", "D", ""):
        found = task_of(task).process_results({**UNIFORM[task], column: wrong}, [answer])
        assert (found["strict_accuracy"], found["lenient_accuracy"], found["no_reference"]) == (0, 0, 1)
        assert set(found) <= {
            "strict_accuracy",
            "lenient_accuracy",
            *COUNTED,
            "chance",
            "strict_macro",
            "lenient_macro",
        }


def test_the_stock_scores_forgive_more(offline):
    said = "The best answer is B."
    of = {task: task_of(task).process_results(doc, [said]) for task, doc in UNIFORM.items()}
    assert of["bimba_videomme"]["videomme_perception_score"]["score"] == 1
    assert of["bimba_mlvu_dev"]["mlvu_percetion_score"]["pred_answer"] == "B"
    assert of["bimba_longvideobench_val_v"]["lvb_acc"]["parsed_pred"] == "B"
    assert of["bimba_nextqa_mc_test"]["exact_match"]
    assert of["bimba_perceptiontest_val_mc"]["accuracy"]["correct"] == 1


EGOSCHEMA = {"answer": "1", "video_idx": "x", "question": "?", "option": [f"{letter}. o" for letter in "ABCDE"]}


@pytest.mark.parametrize(
    ("answer", "strict_right", "lenient_right", "pred"), [("B", 1, 1, 1), ("(B)", 0, 1, 1), ("A", 0, 0, 0)]
)
def test_egoschemas_subset_has_all_scores(offline, answer, strict_right, lenient_right, pred):
    assert task_of("bimba_egoschema").process_subset(EGOSCHEMA, [answer]) == {
        "strict_accuracy": strict_right,
        "lenient_accuracy": lenient_right,
        "score": {"pred": pred, "ground_truth": "1"},
        **dict.fromkeys(COUNTED, 0),
    }


@pytest.mark.parametrize(
    ("answer", "index", "no_letter", "outside"),
    [("B", 1, 0, 0), ("(B)", -1, 0, 0), ("H", -1, 0, 1), ("well", -1, 1, 0)],
)
def test_egoschemas_full_set_counts_what_it_cannot_hand_in(offline, answer, index, no_letter, outside):
    assert task_of("bimba_egoschema").process_full({**EGOSCHEMA, "answer": None}, [answer]) == {
        "answered": index >= 0,
        "no_letter": no_letter,
        "outside_options": outside,
        "submission": {"x": index},
    }


def test_mlvus_number_is_the_mean_over_types(offline):
    task = task_of("bimba_mlvu_dev")
    scores = [("ego", 1), ("ego", 1), ("ego", 0), ("count", 0)]
    rows = [{"task_type": kind, "score": score} for kind, score in scores]
    assert task.aggregate_macro(rows) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize(("home", "message"), [(None, "HF_HOME is not set"), ("~/hf", "'~/hf', which is not absolute")])
def test_a_wrong_hf_home_is_named(monkeypatch, home, message):
    monkeypatch.setenv("HF_HOME", home or "unset by the test")
    if home is None:
        monkeypatch.delenv("HF_HOME")
    with pytest.raises(BimbaError, match=message):
        stock_utils("mlvu")


@pytest.mark.parametrize(
    ("answer", "index"), [("A", 0), ("E.", 4), ("b", 1), ("F", -1), ("", -1), ("AB", -1), ("(A)", -1)]
)
def test_answers_for_kaggle(answer, index):
    assert answer_index(answer) == index


def sample(uid="u", answer="A"):
    return {"submission": {uid: 3}, "filtered_resps": answer}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "does not hold EgoSchema answers"),
        ("a.json", b"\xff{", "does not hold EgoSchema answers (UnicodeDecodeError"),
        ("a.json", json.dumps({"samples": []}), "0 answers to 0 questions"),
        ("a.json", json.dumps([1]), "does not hold EgoSchema answers"),
        ("a.jsonl", json.dumps({"doc": 1}), "does not hold EgoSchema answers"),
        ("a.jsonl", f"{json.dumps(sample())}\n{json.dumps(sample())}\n", "2 answers to 1 questions"),
    ],
)
def test_files_that_hold_no_answers_are_named(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert cli.main(["egoschema-submission", str(tmp_path / name), str(tmp_path / "s.csv")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert str(tmp_path / name) in error
    assert not (tmp_path / "s.csv").exists()


def test_samples_of_both_writers_are_read_alike(tmp_path):
    rows = [sample("u", "B"), sample("v", "no idea")]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    lists = [{**row, "filtered_resps": [row["filtered_resps"]]} for row in rows]
    (tmp_path / "a.json").write_text(json.dumps({"task": "bimba_egoschema", "samples": lists}))
    assert read_predictions(tmp_path / "a.jsonl") == read_predictions(tmp_path / "a.json") == {"u": 1, "v": -1}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["missing.jsonl", "s.csv"], 1, "is not a file"), (["missing.jsonl", "s.txt"], 2, "ends in .csv")],
)
def test_wrong_names_are_user_errors(capsys, arguments, code, message):
    assert cli.main(["egoschema-submission", *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_submission_never_takes_the_place_of_the_samples(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    samples = json.dumps({"samples": [{**sample("u", "B"), "filtered_resps": ["B"]}]})
    Path("samples").mkdir()
    Path("samples/bimba_egoschema.json").write_text(samples)
    arguments = [str(tmp_path / "samples/bimba_egoschema.json"), "samples/../samples/bimba_egoschema.csv"]
    assert cli.main(["egoschema-submission", *arguments]) == 2
    assert "would take the place of the samples" in capsys.readouterr().err
    assert Path("samples/bimba_egoschema.json").read_text() == samples
    assert not Path("samples/bimba_egoschema.csv").exists()


@pytest.mark.parametrize("name", ["file/s.csv", "folder.csv"])
def test_a_submission_that_cannot_be_written_is_one_line(tmp_path, capsys, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "a.jsonl").write_text(json.dumps(sample()))
    assert cli.main(["egoschema-submission", str(tmp_path / "a.jsonl"), str(tmp_path / name)]) == 1
    assert f"{name} cannot be written" in capsys.readouterr().err


RESULTS = {
    "results": {"a": {"m,none": 0.5, "chance,none": 0.25}, "b": {"m,none": 1.0}},
    "samples": {"a": [{"m": 1.0}, {"m": 0.0}], "b": [{"m": 1.0}]},
}


def test_scores_of_some_tasks_with_a_chance_of_their_own():
    (score,) = harness_scores(RESULTS, "m", "chance", ["a"])
    assert (score.task, score.accuracy, score.chance, score.n) == ("a", 0.5, 0.25, 2)
    with pytest.raises(BimbaError, match="'b' has no metric 'chance'"):
        harness_scores(RESULTS, "m", "chance")
    with pytest.raises(BimbaError, match="0 answers and no metric 'm' for task 'c'"):
        harness_scores(RESULTS, "m", 0.25, ["c"])


def test_the_published_number_stands_beside_the_found_one():
    entry = {"published": 64.67, "metric": "m", "num_frames": 64, "found": 50.0}
    assert compare(RESULTS, "a", 64.67, "m", 64) == entry
    assert compare(RESULTS, "a", 71.14, None, 64)["found"] is None
    with pytest.raises(BimbaError, match="no metric 'x'"):
        compare(RESULTS, "a", 1.0, "x", 64)
    with pytest.raises(BimbaError, match="no answers for task 'c'"):
        compare(RESULTS, "c", 1.0, None, 64)
