"""Data sets with documents that cannot be asked, come twice, or have no right answer: all named, before any forward."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from loguru import logger

from bimba.data.prompt import LETTERS
from bimba.inference import EncodedVideo
from bimba.inference.answer import Generation
from lmms_eval_plugin.miniature import Replica, replicas
from lmms_eval_plugin.tasks.documents import checked
from lmms_eval_plugin.tasks.published import Asked, letter_at, lettered

Rows = list[dict[str, Any]]
CONFIGS = {"videomme": "videomme", "egoschema": "GENERATION", "longvideobench": "default", "nextqa": "MC"}


@pytest.fixture
def odd(offline, monkeypatch) -> Callable[[str, Callable[[Rows], Rows]], None]:
    """Changes the rows of a benchmark's replica as they are loaded."""

    def change(benchmark: str, rows: Callable[[Rows], Rows]) -> None:
        (replica,) = (r for r in replicas() if r.config == CONFIGS[benchmark])

        def load_dataset(path: str, name: str | None, **kwargs: Any) -> DatasetDict:
            assert path == replica.repository
            return _table(replica, rows(replica.rows))

        monkeypatch.setattr("datasets.load_dataset", load_dataset)

    return change


def _table(replica: Replica, rows: Rows) -> DatasetDict:
    return DatasetDict({replica.split: Dataset.from_list(rows)})


@pytest.fixture
def warnings():
    messages: list[str] = []
    sink = logger.add(messages.append, level="WARNING", format="{message}")
    yield messages
    logger.remove(sink)


@pytest.fixture
def no_forward(monkeypatch):
    for name in ("generate", "choose_letter"):
        monkeypatch.setattr(EncodedVideo, name, lambda *args, **kwargs: pytest.fail("asked"))


@pytest.mark.parametrize("answers", ["generate", "choose"])
def test_documents_that_cannot_be_asked_end_the_run_all_at_once(odd, evaluate, no_forward, answers):
    many = lettered([f"o{i}" for i in range(27)])
    odd(
        "videomme",
        lambda rows: [
            {**rows[0], "options": ["A. only"]},
            rows[1],
            {**rows[2], "options": many},
            {**rows[2], "question": " "},
        ],
    )
    message = (
        "Task bimba_videomme: 3 documents cannot be asked: document 0 (1 options), document 2 (27 options), document 3 "
        "(no question). Expected a question with 2 to 26 options"
    )
    with pytest.raises(SystemExit, match=re.escape(message)):
        evaluate("benchmark=videomme", f"answers={answers}")


@pytest.mark.parametrize("answers", ["generate", "choose"])
def test_up_to_26_options_are_asked(odd, evaluate, answers, tmp_path):
    odd("videomme", lambda rows: [{**rows[0], "options": lettered([f"o{i}" for i in range(26)]), "answer": "Z"}])
    summary = evaluate("benchmark=videomme", f"answers={answers}")
    (task,) = summary["tasks"]
    (sample,) = json.loads((tmp_path / f"out/samples/{task}.json").read_text())["samples"]
    assert "(A, B, C, D, E, F, " in sample["arguments"][0]
    assert sample["arguments"][0].endswith("Z. o25\nThe best answer is:")
    if answers == "choose":
        (line,) = (tmp_path / "out/journal/journal-0.jsonl").read_text().splitlines()
        assert list(json.loads(line)["probabilities"]) == list(LETTERS)
        assert sample["filtered_resps"][0] in LETTERS


def test_right_answers_that_are_no_option_and_documents_that_come_twice_are_named_and_counted(
    odd, evaluate, warnings, monkeypatch
):
    """Video-MME: empty, missing, outside, twice."""
    monkeypatch.setattr(EncodedVideo, "generate", lambda self, prompt, *a, **k: Generation("A", 1, 1))
    odd(
        "videomme",
        lambda rows: [
            {**rows[0], "answer": "A"},
            {**rows[1], "answer": ""},
            {**rows[2], "answer": None},
            {**rows[2], "question_id": "x", "answer": "E"},
            {**rows[0], "answer": "A"},
        ],
    )
    summary = evaluate("benchmark=videomme")
    assert summary["tasks"]["bimba_videomme"]["accuracy"] == 2 / 5
    assert summary["readings"]["bimba_videomme"] == {
        **{"strict_accuracy": 2 / 5, "lenient_accuracy": 2 / 5},
        **{"no_letter": 0, "outside_options": 0, "no_reference": 3},
    }
    said = "".join(warnings)
    assert "Task bimba_videomme: 1 documents come twice, and count twice: document 4 (000-1)" in said
    assert (
        "the right answer of 3 documents is no letter of their options, so they count as wrong: document 1 (none of 4 "
        "options), document 2 (none of 4 options), document 3 (E of 4 options)"
    ) in said


@pytest.mark.parametrize(
    ("answer", "counted"),
    [("no idea", "no_letter"), ("", "no_letter"), ("E", "outside_options"), ("The answer is (Z).", "outside_options")],
)
def test_answers_that_are_no_letter_of_an_option_are_wrong_and_counted(odd, evaluate, monkeypatch, answer, counted):
    monkeypatch.setattr(EncodedVideo, "generate", lambda self, prompt, *a, **k: Generation(answer, 1, 1))
    odd("videomme", lambda rows: rows)
    summary = evaluate("benchmark=videomme")
    read = summary["readings"]["bimba_videomme"]
    assert (read["strict_accuracy"], read["lenient_accuracy"]) == (0, 0)
    others = {"no_letter": 0, "outside_options": 0, "no_reference": 0}
    assert {name: read[name] for name in others} == {**others, counted: 3}


def test_kaggle_wants_each_video_once(odd, evaluate, no_forward):
    odd("egoschema", lambda rows: [*rows, rows[0]])
    with pytest.raises(SystemExit, match=r"bimba_egoschema: 1 documents come twice: document 2 \(uid-0\)\. Expected"):
        evaluate("benchmark=egoschema")


@pytest.mark.parametrize(("index", "answers"), [(-1, "generate"), (5, "choose"), (99, "generate")])
@pytest.mark.parametrize("benchmark", ["nextqa", "longvideobench"])
def test_numbers_of_no_option_do_not_stop_the_harness(odd, evaluate, benchmark, index, answers):
    column = {"nextqa": "answer", "longvideobench": "correct_choice"}[benchmark]
    odd(benchmark, lambda rows: [{**rows[0], column: index}, rows[1]])
    summary = evaluate(f"benchmark={benchmark}", f"answers={answers}")
    ((task, score),) = summary["tasks"].items()
    assert (summary["readings"][task]["no_reference"], score["n"]) == (1, 2)


def test_what_is_right_is_left_as_it_is(warnings):
    documents = [{"id": i, "options": ["x"] * (2 + i)} for i in range(25)]
    assert (
        checked("t", documents, lambda doc: Asked("Which?", lettered(doc["options"]), "A", identity=doc["id"]))
        is documents
    )
    assert warnings == []


@pytest.mark.parametrize(
    ("index", "letter"), [(0, "A"), ("4", "E"), (25, "Z"), (26, ""), (-1, ""), ("", ""), (None, ""), ("B", "")]
)
def test_letters_of_numbers(index, letter):
    assert letter_at(index) == letter
