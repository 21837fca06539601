from __future__ import annotations

import errno
import json
import os

import pytest
from harness import harness_results, make_evaluation, make_run, sample

from bimba.report import files
from bimba.report.evaluation import Evaluation, Task
from bimba.report.files import hold, read_summary, results_in, write_bytes
from bimba.report.output import write_answers, write_evaluation
from bimba.types import BimbaError


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    refused = pytest.raises(BimbaError, match="Another evaluation is writing to .*out. Wait .* another output_dir")
    with hold(tmp_path / "out"), refused, hold(tmp_path / "out"):
        pass
    with hold(tmp_path / "out"):
        assert (tmp_path / "out" / files.LOCK).is_file()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    refused = pytest.raises(BimbaError, match="file/out cannot be written .*; give another output_dir")
    with refused, hold(tmp_path / "file/out"):
        pass


def test_half_a_file_is_never_in_place(tmp_path, monkeypatch):
    path = tmp_path / "film.mp4"
    write_bytes(path, b"whole")

    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_bytes(path, b"other")
    assert path.read_bytes() == b"whole"


def test_a_full_disk_is_one_line_that_says_where_the_answers_are(tmp_path):
    message = (
        r"written to \S+ \(No space left on device\).* kept in \S+/journal: free .* had no room for are asked again"
    )
    said = pytest.raises(BimbaError, match=message)
    with said, results_in(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "is not JSON"), (b"\xff{", "is not JSON"), (b"[]", "no tasks")]
)
def test_a_summary_that_is_none_is_named(tmp_path, content, message):
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(BimbaError, match=rf"summary\.json .*{message}"):
        read_summary(tmp_path)


def test_answers_and_metrics_have_one_order_whatever_the_harness_s(tmp_path):
    samples = [sample(i, 1.0) for i in (0, 2, 1)]
    write_answers(tmp_path, harness_results(samples, zeal=1.0, answered=1.0), default=str)
    kept = json.loads((tmp_path / "samples/quiz.json").read_text())
    assert kept == {"task": "quiz", "samples": sorted(samples, key=lambda one: one["doc_id"])}
    found = json.loads((tmp_path / "results.json").read_text())["results"]["quiz"]
    assert list(found) == ["alias", "answered,none", "strict_accuracy,none", "strict_accuracy_stderr,none", "zeal,none"]


def test_what_an_earlier_report_of_other_tasks_wrote_is_removed_and_nothing_else(film, tmp_path):
    earlier = make_evaluation(video=film)
    write_answers(tmp_path, harness_results([sample(0, 1.0)]), default=str)
    write_evaluation(tmp_path, earlier)
    pictures, samples = tmp_path / "report_files", tmp_path / "samples"
    assert {"quiz.png", "quiz-1-0.jpg", "overview.png"} <= names(pictures)
    for path in (pictures / "mine.png", pictures / "quiz-notes.jpg", samples / "mine.json"):
        path.write_text("")

    other = harness_results([sample(0, 1.0)])
    other["results"]["other"], other["samples"] = other["results"].pop("quiz"), {"other": other["samples"]["quiz"]}
    write_answers(tmp_path, other, default=str)
    write_evaluation(tmp_path, Evaluation(make_run(), [Task("other", failed="no answers")]))
    assert names(samples) == {"other.json", "mine.json"}
    assert names(pictures) == {"mine.png", "quiz-notes.jpg"}


def test_a_summary_that_is_none_of_ours_is_no_reason_to_remove_anything(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/mine.json").write_text("")
    for content in ("half a", "[]", '{"frames": 8}'):
        (tmp_path / "summary.json").write_text(content)
        write_answers(tmp_path, harness_results([sample(0, 1.0)]), default=str)
    assert names(tmp_path / "samples") == {"mine.json", "quiz.json"}


@pytest.mark.parametrize(("frames", "expected"), [((64, 64), 64), ((64, 128), None), ((None, 8), 8), ((None,), None)])
def test_the_number_of_frames_is_that_of_all_tasks_or_none(frames, expected):
    tasks = [Task(f"task{i}", num_frames=number) for i, number in enumerate(frames)]
    summary = Evaluation(make_run(), tasks).summary()
    assert summary["num_frames"] == expected
    assert list(summary["frames"].values()) == list(frames)
