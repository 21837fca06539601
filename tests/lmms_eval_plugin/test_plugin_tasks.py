from __future__ import annotations

import json

import pytest
from lmms_eval.tasks import TaskManager, get_task_dict
from tiny_checkpoint import QUESTIONS_PER_TASK

from bimba.data.prompt import multiple_choice
from bimba.types import BimbaError
from lmms_eval_plugin.manifest import TASKS_FOLDER
from lmms_eval_plugin.tasks.bimba_needle.task import find_folder, load_questions, process_results


@pytest.fixture
def needles(needle_root, monkeypatch):
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(needle_root))
    return needle_root


def test_the_harness_builds_the_group(needles):
    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False, model_name="bimba")
    ((group, tasks),) = get_task_dict(["bimba_needle"], manager, "chat").items()
    assert group.group_name == "bimba_needle"
    assert sorted(tasks) == ["bimba_needle_counting", "bimba_needle_ordering", "bimba_needle_retrieval"]

    task = tasks["bimba_needle_retrieval"]
    docs = list(task.test_docs())
    assert len(docs) == QUESTIONS_PER_TASK
    assert {doc["task"] for doc in docs} == {"retrieval"}
    (message,) = task.doc_to_messages(docs[1])
    assert message["content"] == [
        {"type": "video", "url": str((needles / "test/videos/b.mp4").resolve())},
        {"type": "text", "text": multiple_choice(docs[1]["question"], docs[1]["options"])},
    ]
    assert task.config.generation_kwargs == {"max_new_tokens": 16, "do_sample": False, "until": ["\n\n"]}
    assert task.process_results(docs[1], [" b. "]) == {"accuracy": 1.0}


def test_the_group_that_chooses_asks_the_same(needles):
    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False, model_name="bimba")
    ((group, tasks),) = get_task_dict(["bimba_needle_choose"], manager, "chat").items()
    assert group.group_name == "bimba_needle_choose"
    assert sorted(tasks) == [f"bimba_needle_{kind}_choose" for kind in ("counting", "ordering", "retrieval")]
    ((_, words),) = get_task_dict(["bimba_needle"], manager, "chat").items()
    for name, task in tasks.items():
        docs, same = list(task.test_docs()), words[name.removesuffix("_choose")]
        assert [task.doc_to_messages(doc) for doc in docs] == [same.doc_to_messages(doc) for doc in same.test_docs()]
        assert task.doc_to_choice(docs[0]) == list("ABCD")
        assert task.config.generation_kwargs["choose"] is True


@pytest.mark.parametrize(
    ("answer", "accuracy"), [("C", 1.0), ("c.", 1.0), ("A", 0.0), ("", 0.0), ("The answer is C.", 0.0)]
)
def test_scoring_is_strict(answer, accuracy):
    assert process_results({"answer": "C"}, [answer]) == {"accuracy": accuracy}


def test_a_question_says_how_short_its_needles_are(needle_root, tmp_path, monkeypatch):
    annotations = json.loads((needle_root / "test/annotations.json").read_text())
    annotations[0]["needles"] = [{"digit": 3, "start": 8, "length": 6}, {"digit": 1, "start": 30, "length": 4}]
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(tmp_path))
    first, second, *_ = load_questions("retrieval")
    assert (first["num_needles"], first["needle_frames"]) == (2, 4)
    assert (second["num_needles"], second["needle_frames"]) == (None, None)  # these annotations do not say


def test_the_variable_names_the_data_or_its_test_split(needle_root, monkeypatch):
    for root in (needle_root, needle_root / "test"):
        monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(root))
        assert find_folder() == needle_root / "test"


def test_the_default_is_under_the_current_folder(needle_root, tmp_path, monkeypatch):
    monkeypatch.delenv("BIMBA_NEEDLE_ROOT", raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "needle").symlink_to(needle_root)
    monkeypatch.chdir(tmp_path)
    assert len(load_questions("counting")) == QUESTIONS_PER_TASK


def test_missing_data_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(tmp_path))
    with pytest.raises(BimbaError, match=rf"{tmp_path}.*bimba train.*BIMBA_NEEDLE_ROOT"):
        load_questions("retrieval")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a needle annotation file"),
        (b"\xff[", "not a needle annotation file"),
        (json.dumps([{"id": 1}]).encode(), "KeyError: 'task'"),
        (b"[]", "no retrieval question"),
    ],
)
def test_broken_annotations_are_named(tmp_path, monkeypatch, content, message):
    (tmp_path / "annotations.json").write_bytes(content)
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(tmp_path))
    with pytest.raises(BimbaError, match=message) as caught:
        load_questions("retrieval")
    assert str(tmp_path) in str(caught.value)
