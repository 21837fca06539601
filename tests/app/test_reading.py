"""A video and questions about it, as the page has it done; without the page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from bimba.app import drawing
from bimba.app.asking import ask, check_asked, checked_options
from bimba.app.reading import read
from bimba.app.sessions import MAX_WAITING, Answer, Exchange, Reading, Selected
from bimba.inference import VideoQA
from bimba.inference.selection import look
from bimba.report.selection_pictures import heat
from bimba.types import BimbaError


class Elements(HTMLParser):
    """Start tags and words of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words += data


def opened(path: Path) -> Reading:
    return Reading(path, path.stat().st_size)


def run(steps) -> int:
    return sum(1 for _ in steps)


def test_frames_are_there_before_tokens_and_tokens_before_the_map(models_of, videos):
    models, reading = models_of("scan", num_frames=8), opened(videos / "a.mp4")
    steps = [
        (len(reading.pictures), reading.ready.is_set(), len(reading.maps), len(reading.reads))
        for _ in read(reading, models)
    ]
    assert steps[0] == (0, False, 0, 0)
    assert [step for step, before in zip(steps, [None, *steps]) if step != before] == [
        (0, False, 0, 0),
        (4, False, 0, 0),  # the first frames, by themselves
        (8, False, 0, 0),
        (8, False, 0, 1),
        (8, True, 0, 1),
        (8, True, 1, 1),
    ]
    assert all(stage.state == "done" for stage in reading.stages)
    assert "Decoded 8 frames of 3.0 s" in reading.stages[1].text
    assert "128 patches became" in reading.stages[2].text


def test_the_map_is_that_of_bimba_map(models_of, videos, checkpoints):
    models, reading = models_of("scan"), opened(videos / "a.mp4")
    run(read(reading, models))
    (selected,) = reading.maps.values()
    expected = look(VideoQA.from_pretrained(checkpoints / "scan", device="cpu"), videos / "a.mp4", num_queries=4)
    total = expected.selection.total.sum(0).numpy()
    assert isinstance(selected, Selected)
    assert [share for *_, share in selected.frames] == pytest.approx(total.sum((1, 2)) / total.sum(), rel=1e-4)
    assert heat(total).max() == 1


def test_without_a_scan_the_page_says_why_there_is_no_map(models_of, videos):
    models, reading = models_of("none"), opened(videos / "a.mp4")
    run(read(reading, models))
    assert reading.maps == {"none (no compressor)": models.all[0].no_map}
    assert "Give a checkpoint whose compressor is one of: gated_patch, mamba, mamba2" in drawing.frames(reading, models)


def test_answers_are_those_of_the_engine_and_grow(models_of, videos, checkpoints):
    models, reading = models_of("scan", "none"), opened(videos / "a.mp4")
    run(read(reading, models))
    grown = {""}
    for _ in ask(reading, models, " Who? ", [], False):
        grown.add(reading.exchanges[0].answers[1].text)
    run(ask(reading, models, "Who?", ["A. one", "B. two"], False))
    run(ask(reading, models, "Who?", [], True))
    for number, name in enumerate(("scan", "none")):
        video = VideoQA.from_pretrained(checkpoints / name, device="cpu").encode(videos / "a.mp4")
        words, letters, short = (exchange.answers[number] for exchange in reading.exchanges)
        assert words.text == video.ask("Who?", 8)
        assert short.text == video.ask("Who?", 8, short=True)
        assert letters.probabilities == pytest.approx(video.choose("Who?", ["one", "two"]).probabilities, abs=1e-5)
        assert letters.text == max(letters.probabilities, key=letters.probabilities.get)
        assert words.seconds > 0 and words.state == "done"
    assert len(grown) > 2  # word by word
    assert reading.reads == {"scan (mamba)": 1, "none (no compressor)": 1}
    assert "Video read once by each model: 3 questions answered." in Elements(drawing.answers(reading)).words


def test_a_video_there_was_no_room_for_is_read_again_and_the_page_says_so(models_of, videos):
    models, reading = models_of("scan"), opened(videos / "a.mp4")
    run(read(reading, models))
    models.all[0].engine.cache.make_room(models.all[0].engine.cache.max_bytes)
    run(ask(reading, models, "Who?", [], False))
    assert reading.exchanges[0].answers[0].state == "done"
    assert "Video read 2 times, as there was no room to keep it: 1 question answered." in drawing.answers(reading)


def test_a_model_that_reads_the_question_has_a_map_of_each(models_of, videos):
    models, reading = models_of("conditioned"), opened(videos / "a.mp4")
    run(read(reading, models))
    assert "depends on the question: ask one" in drawing.frames(reading, models)
    shares = []
    for question in ("Who?", "Where is the long way home?"):
        run(ask(reading, models, question, ["one", "two"], False))
        (selected,) = reading.maps.values()
        assert selected.question == question
        shares.append([share for *_, share in selected.frames])
    assert shares[0] != shares[1]


def test_short_videos_repeat_frames_and_the_page_says_so(models_of, videos):
    reading = opened(videos / "short.mp4")
    run(read(reading, models_of("none")))
    assert "it has only 2, so some repeat" in reading.stages[1].text
    refused = opened(videos / "short.mp4")
    run(read(refused, models_of("none", short_videos="error")))
    assert refused.failed and "2 frames, and 4 were asked for" in refused.stages[-1].text


def test_a_bad_file_is_said_and_questions_about_it_are_refused(models_of, tmp_path):
    (tmp_path / "notes.mp4").write_text("no film")
    models, reading = models_of("none"), opened(tmp_path / "notes.mp4")
    waiting = ask(reading, models, "Who?", [], False)  # asked before it was read
    next(waiting)
    run(read(reading, models))
    run(waiting)
    assert reading.failed and reading.ready.is_set()
    page = Elements(drawing.stages(reading))
    assert "notes.mp4: not a media file" in page.words and str(tmp_path) not in page.words
    assert ("span", {"class": "bimba-error", "role": "alert"}) in page.tags
    assert reading.exchanges[0].answers[0].text == "notes.mp4 could not be read."
    with pytest.raises(BimbaError, match=r"notes.mp4 could not be read.*Drop another"):
        check_asked(reading, "Who?")


def test_a_failing_model_is_said_and_the_page_goes_on(models_of, videos, monkeypatch):
    models, reading = models_of("none"), opened(videos / "a.mp4")
    (model,) = models.all
    monkeypatch.setattr(model.engine, "encode_pixels", lambda pixels: 1 / 0)
    run(read(reading, models))
    assert reading.failed and "The model failed" in reading.stages[-1].text
    monkeypatch.undo()
    again = opened(videos / "a.mp4")
    run(read(again, models))
    monkeypatch.setattr(model, "answer", lambda *arguments: 1 / 0)
    run(ask(again, models, "Who?", [], False))
    assert (again.exchanges[0].answers[0].state, again.num_answered) == ("failed", 0)


def test_a_visitor_who_leaves_stops_the_answer_and_nobody_waits_for_it(models_of, videos):
    models, reading = models_of("none", max_new_tokens=400), opened(videos / "b.mp4")
    run(read(reading, models))
    asking = ask(reading, models, "Who?", [], False)
    while not reading.exchanges or not reading.exchanges[0].answers[0].text:
        next(asking)
    asking.close()
    full = VideoQA.encode(models.all[0].engine, videos / "b.mp4").ask("Who?", 400)
    assert models.submit(lambda: "next").result(timeout=60) == "next"
    answer = reading.exchanges[0].answers[0]
    assert answer.state == "failed" and len(answer.text) < len(full)


def test_what_can_be_asked(tmp_path):
    (tmp_path / "a.mp4").touch()
    reading = opened(tmp_path / "a.mp4")
    with pytest.raises(BimbaError, match="Drop a video first"):
        check_asked(None, "Who?")
    with pytest.raises(BimbaError, match="question is empty"):
        check_asked(reading, " \n")
    with pytest.raises(BimbaError, match="Got 1 options"):
        checked_options("one\n\n")
    with pytest.raises(BimbaError, match="more than once"):
        checked_options("one\none")
    assert checked_options(" one \n\ntwo") == ["one", "two"]
    reading.exchanges += [Exchange("Who?", [], [Answer("model")])] * MAX_WAITING
    with pytest.raises(BimbaError, match="8 questions wait"):
        check_asked(reading, "Who?")


def test_what_visitors_write_is_text(models_of, tmp_path):
    bad = "<img src=x onerror=alert(1)>${alert(1)}{{ 7 * 7 }}"
    (tmp_path / "a.mp4").touch()
    reading = opened(tmp_path / "a.mp4")
    reading.reads["model"] = 1
    reading.add(Exchange(bad, [bad, bad], [Answer("model", "done", "A", {"A": 1.0, "B": 0.0}, 0.1)]))
    reading.add(Exchange(bad, [], [Answer("model", "done", bad, None, 0.1)]))
    page = Elements(drawing.answers(reading, bad))
    assert page.words.count(bad) == 6
    assert "img" not in [tag for tag, _ in page.tags]
