from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from harness import ROW, harness_results, make_evaluation, make_run, sample

from bimba.report import plots
from bimba.report.accuracy import score
from bimba.report.examine import examine
from bimba.report.page import code_block, plain, write_report
from bimba.types import BimbaError

HOSTILE = '<script>alert(1)</script> "><img src=x onerror=alert(2)> | **x** [a](http://b) `c` $d$ & é'
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Elements with their attributes, text, and whatever does not match."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(attribute)) is not None]


def written(folder, evaluation) -> tuple[Page, str]:
    write_report(folder, evaluation)
    page = Page((folder / "report.html").read_text())
    assert page.open == []
    return page, (folder / "report.md").read_text()


def hostile_evaluation(film):
    samples = [sample(i, float(i % 2), HOSTILE, answer=HOSTILE) for i in range(4)]
    return make_evaluation(
        samples,
        video=film,
        prompt=f"{HOSTILE}\nA. {HOSTILE}\nB. two\n{HOSTILE}",
        checkpoint=HOSTILE,
        benchmark=HOSTILE,
        unreadable={HOSTILE: HOSTILE},
        short=[HOSTILE],
        command=HOSTILE,
        changes=[(HOSTILE, HOSTILE, HOSTILE)],
    )


def test_the_page_needs_nothing_and_runs_nothing_whatever_an_answer_says(film, tmp_path):
    page, _ = written(tmp_path, hostile_evaluation(film))
    tags = [tag for tag, _ in page.elements]
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(tags)
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    sources = page.values("src")
    assert len(sources) == 4 * 4  # four examples of four frames
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert all(target.startswith("#") for name in ("href", "xlink:href") for target in page.values(name))
    identifiers = page.values("id")
    assert len(identifiers) == len(set(identifiers))
    assert {target[1:] for target in page.values("href")} <= set(identifiers)
    assert page.text.count("<script>alert(1)</script>") > 10  # as words
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")


def test_markdown_holds_no_markup_of_others(film, tmp_path):
    _, text = written(tmp_path, hostile_evaluation(film))
    lines = [line for line in text.splitlines() if "alert" in line and not line.startswith("    ")]
    assert lines
    for line in lines:
        assert "<" not in line.replace(r"\<", "")
        assert "**x**" not in line
        assert "](http" not in line
    pictures = [line.split("](")[1].split('"')[0].strip(" )") for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) == 2 + 4 * 4
    assert all((tmp_path / picture).is_file() for picture in pictures)


def test_what_stands_in_a_cell_or_a_block_stays_there():
    assert plain("a|b\n<c>") == r"a\|b \<c\>"
    assert code_block("one\n\n# two") == "    one\n    \n    # two"
    assert code_block("  ") == "    (empty)"


def test_the_score_stands_beside_the_published_number(film, tmp_path):
    evaluation = make_evaluation(video=film)
    page, text = written(tmp_path, evaluation)
    row = "| quiz | 64.67 | 50.00 | 21.5 to 78.5 | inside | strict_accuracy | 4 (64) |"
    assert row in text
    assert "| short | 50.00 | 15.0 to 85.0 | 4 |" in text
    assert "python evaluate.py benchmark=quiz" in page.text
    assert "0123456789abcdef" in page.text
    assert "benchmark" in page.text
    assert any(notice.startswith("OTHER FRAMES") for notice in evaluation.notices())


@pytest.mark.parametrize(("right", "expected"), [(0, "above"), (4, "inside"), (8, "below")])
def test_where_the_published_number_lies(right, expected):
    (task,) = make_evaluation([sample(i, float(i < right)) for i in range(8)]).tasks
    assert task.published_is == expected


def test_incomplete_limited_and_miniature_runs_say_so(film, tmp_path):
    evaluation = make_evaluation(
        video=film, unreadable={"/v/broken.mp4": "truncated"}, limit=8, source="miniature", short=["/v/short.mp4"]
    )
    page, text = written(tmp_path, evaluation)
    for word in ("INCOMPLETE: 1 videos", "LIMITED: limit=8", "MINIATURE"):
        assert word in page.text
        assert word in text
    for path in ("/v/broken.mp4", "/v/short.mp4"):
        assert path in page.text
        assert path in text
    summary = evaluation.summary()
    assert (summary["complete"], summary["unreadable_videos"]) == (False, {"/v/broken.mp4": "truncated"})


def test_a_task_that_failed_is_named_and_the_others_are_reported(film, tmp_path):
    results = harness_results([sample(i, 1.0) for i in range(4)])
    results["group_subtasks"] = {"both": ["quiz", "other"], "quiz": []}
    evaluation = examine(results, [{**ROW, "tasks": ["both"]}], make_run(video=film))
    assert list(evaluation.failed) == ["other"]
    assert [one.task for one in evaluation.scores] == ["quiz"]
    page, text = written(tmp_path, evaluation)
    assert "FAILED: other: The harness returned no answers for task 'other'" in page.text
    assert "| other | failed |" in text
    assert evaluation.summary()["failed_tasks"].keys() == {"other"}


def test_a_data_set_without_a_category_costs_the_plot_and_not_the_score(film, tmp_path):
    row = {**ROW, "categories": ["area"]}
    evaluation = examine(harness_results([sample(i, 1.0) for i in range(4)]), [row], make_run(video=film))
    page, _ = written(tmp_path, evaluation)
    assert evaluation.failed == {}
    assert evaluation.scores[0].accuracy == 1.0
    assert "NO CATEGORIES: quiz: The data set has no column 'area'" in page.text


def test_a_task_without_a_score_is_not_scored(film, tmp_path):
    samples = [{**sample(i, 1.0), "answered": 1.0} for i in range(2)]
    row = {**ROW, "metric": None, "published": {"quiz": {"score": 71.14, "metric": None, "num_frames": 64}}}
    evaluation = examine(harness_results(samples, answered=1.0), [row], make_run(video=film))
    assert (evaluation.scores, evaluation.failed) == ([], {})
    _, text = written(tmp_path, evaluation)
    assert "| quiz | 71.14 | elsewhere | \N{EN DASH} | \N{EN DASH} | submission | 4 (64) |" in text
    assert "### not scored: quiz, document 0" in text


def test_strict_and_lenient_readings_stand_side_by_side(tmp_path, film):
    samples = [sample(i, 0.0, lenient_accuracy=float(i < 2), lenient_kind=1.0) for i in range(4)]
    results = harness_results(samples, lenient_accuracy=0.5, lenient_kind=1.0)
    results["samples"]["quiz"][0].pop("lenient_kind")  # of three questions only
    evaluation = examine(results, [ROW], make_run(video=film))
    (task,) = evaluation.tasks
    assert (task.score.accuracy, task.lenient.fraction, task.lenient.metric) == (0.0, 0.5, "lenient_accuracy")
    page, text = written(tmp_path, evaluation)
    assert "Read leniently" in page.text
    assert "| Task | Accuracy | 95 % interval | Read leniently | 95 % interval | Guessing | Questions |\n| ---" in text
    (row,) = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| quiz | 0")]
    assert (row[3], len(row)) == ("50.00", 7)


def test_nothing_is_said_of_lenient_readings_where_no_task_has_any(tmp_path, film):
    samples = [sample(i, 1.0) for i in range(2)]
    page, text = written(tmp_path, examine(harness_results(samples), [ROW], make_run(video=film)))
    assert "Read leniently" not in page.text
    head, lines = "| Task | Accuracy | 95 % interval | Guessing | Questions |", "| --- | ---: | ---: | ---: | ---: |"
    assert f"{head}\n{lines}\n| quiz |" in text


def test_answers_that_could_not_be_read_are_counted(film, tmp_path):
    samples = [sample(i, 0.0, no_letter=float(i < 3), outside_options=0.0) for i in range(4)]
    evaluation = examine(harness_results(samples, no_letter=3, outside_options=0), [ROW], make_run(video=film))
    page, text = written(tmp_path, evaluation)
    expected = "quiz, counted as wrong: 3 answers without a letter, 0 answers outside the options."
    assert expected in page.text
    assert expected in text


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "report_files").write_text("a file")
    with pytest.raises(BimbaError, match="report cannot be written"):
        write_report(tmp_path, make_evaluation())


def test_plots_take_the_ink_of_the_page_and_are_the_same_each_time():
    def draw():
        return plots.categories("quiz", {"kind": [score('$a$ <b> & "c"', 1, 2, 0.0)]}, {0: 1, 1: 3})

    svg = draw().svg()
    assert svg == draw().svg()
    root = ElementTree.fromstring(svg)
    assert "currentColor" in svg
    assert plots.INK not in svg
    assert root.attrib["role"] == "img"
    words = "".join(root.itertext())
    assert '$a$ <b> & "c" (n = 2)' in words
    assert "3 tries right" not in words
    assert draw().png().startswith(b"\x89PNG")
    assert plots.categories("quiz", {"kind": []}, {}) is None


def test_only_names_of_parts_are_made_the_page_s_own_and_no_words():
    words = f'id="x" href="#y" url(#z) {plots.INK} <b id="w">'
    root = ElementTree.fromstring(plots.categories("quiz", {'id="col"': [score(words, 1, 2, 0.0)]}, {}).svg())
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert f"{words} (n = 2)" in texts
    assert 'id="col"' in texts
    assert all(name.startswith("quiz-") for element in root.iter() if (name := element.get("id")))


def test_an_overview_names_every_task():
    evaluation = make_evaluation()
    other = replace(evaluation.tasks[0], name="unpublished", published=None)
    svg = replace(evaluation, tasks=[*evaluation.tasks, other]).overview().svg()
    assert ">quiz<" in svg
    assert ">unpublished<" in svg
