"""The page in a real browser."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from bimba.inference import VideoQA
from tests.app.conftest import served

DROP = "#video input[type=file]"


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for what the browser cannot see."""
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within 30 s: {what}")


def ask(page, question: str, options: str = "") -> None:
    page.fill("#options textarea", options)
    page.fill("#question textarea", question)
    page.click("#ask")


def answers(page) -> list[str]:
    """Newest first."""
    page.wait_for_function("() => !document.querySelector('#answers .waiting, #answers .working')")
    return [text.strip() for text in page.locator("#answers .answer > :first-child").all_text_contents()]


def expected(models, video, question: str) -> str:
    """What the first model answers, asked without the page."""
    engine = VideoQA(models.all[0].engine.model, models.all[0].engine.processor)
    return " ".join(engine.encode(video).ask(question, 8).split())


@pytest.fixture(scope="module")
def page_of_one(checkpoints, tmp_path_factory):
    from bimba.app.models import Models, Settings

    models = Models(Settings([(str(checkpoints / "scan"), None)], max_new_tokens=8, queries=4, device="cpu"))
    with served(models, tmp_path_factory.mktemp("uploads")) as page:
        yield page
    models.end()


def test_a_video_a_question_and_what_was_selected(page_of_one, visitor, videos):
    page = visitor(page_of_one.address)
    page.set_input_files(DROP, videos / "a.mp4")
    page.wait_for_selector("#frames .strip img[alt^='Frame at 0.0 s']")
    page.wait_for_selector("#stages li.done:has-text('patches became')")

    ask(page, "Who?")
    page.wait_for_selector("#answers article")
    ask(page, "Which?", "one\ntwo\nthree\nfour")
    page.wait_for_selector("#answers .bars")
    page.wait_for_selector("#answers :text('2 questions answered')")
    assert "Video read once: 2 questions answered." in page.inner_text("#answers")
    assert page.input_value("#question textarea") == ""
    newest, first = page.locator("#answers article").all()
    assert " ".join(first.locator(".text").inner_text().split()) == expected(
        page_of_one.models, videos / "a.mp4", "Who?"
    )
    percents = [int(text.removesuffix(" %")) for text in newest.locator(".percent").all_inner_texts()]
    assert len(percents) == 4 and abs(sum(percents) - 100) <= 2
    assert newest.locator(".chosen .percent").inner_text() == f"{max(percents)} %"

    page.wait_for_selector("#frames .heat")
    assert page.locator("#frames .heat").count() == page.locator("#frames figure").count() == 4
    assert page.locator("#frames .timeline svg[role=img][aria-label]").count() == 1
    page.uncheck("#frames .heat-toggle")
    assert not page.locator("#frames .heat").first.is_visible()
    page.click("#frames summary")
    page.frame_locator("#frames iframe").locator("#status:has-text('frame')").wait_for()

    assert [url for url in page.requested if not url.startswith((page_of_one.address, "data:", "blob:"))] == []
    assert page.mishaps == []


def test_several_questions_at_once_are_all_answered_from_one_reading(page_of_one, visitor, videos):
    page = visitor(page_of_one.address)
    page.set_input_files(DROP, videos / "a.mp4")
    questions = ["Who?", "Where?", "Why?"]
    page.wait_for_selector("#frames img")
    for question in questions:  # without waiting for an answer, nor for the video
        ask(page, question)
        page.wait_for_selector(f"#answers h3:text-is('{question}')")
    page.wait_for_selector("#answers :text('Video read once: 3 questions answered.')")
    assert page.locator("#answers h3").all_inner_texts() == questions[::-1]
    assert answers(page) == [expected(page_of_one.models, videos / "a.mp4", question) for question in questions[::-1]]


def test_a_bad_file_is_said_and_a_good_one_works_after_it(page_of_one, visitor, videos, odd_files):
    page = visitor(page_of_one.address)
    page.set_input_files(DROP, odd_files / "notes.mp4")
    alert = page.wait_for_selector("#stages [role=alert]")
    assert alert.inner_text().startswith("notes.mp4: not a media file")
    ask(page, "Who?")
    page.wait_for_selector("#answers [role=alert]:text('Drop another video')")
    page.click("#video button[aria-label=Clear]")
    page.wait_for_selector("#stages :text('Drop a video.')")
    page.set_input_files(DROP, videos / "a.mp4")
    page.wait_for_selector("#stages li.done:has-text('patches became')")
    ask(page, "Who?")
    page.wait_for_selector("#answers :text('1 question answered')")


def test_200_megabytes_work_and_more_than_the_limit_is_refused(page_of_one, visitor, odd_files):
    page = visitor(page_of_one.address)
    page.set_input_files(DROP, odd_files / "too_large.mp4")
    page.wait_for_selector(":text('exceed the maximum allowed size of 200.0 Mb')")
    assert "Video, at most 200 MB" in page.inner_text("#video")
    page.set_input_files(DROP, odd_files / "large.mp4")
    page.wait_for_selector("#stages :text('Received large.mp4, 200.0 MB')")
    page.wait_for_selector("#stages li.done:has-text('patches became')")


def test_two_visitors_have_their_own_videos_and_answers(page_of_one, visitor, videos):
    pages = {name: visitor(page_of_one.address) for name in ("a", "b")}
    for name, page in pages.items():
        page.set_input_files(DROP, videos / f"{name}.mp4")
    for page in pages.values():
        ask(page, "Who?")
    found = {name: answers(page)[0] for name, page in pages.items() if page.wait_for_selector("#answers .text")}
    assert found == {name: expected(page_of_one.models, videos / f"{name}.mp4", "Who?") for name in pages}
    assert found["a"] != found["b"]
    for name, page in pages.items():
        assert f"Received {name}.mp4" in page.inner_text("#stages")


def test_files_go_when_the_page_is_closed_or_cleared(page_of_one, visitor, videos):
    until(lambda: page_of_one.uploaded() == [], "the pages before have left nothing")
    page = visitor(page_of_one.address)
    page.set_input_files(DROP, videos / "a.mp4")
    page.wait_for_selector("#frames .heat")
    assert page_of_one.uploaded() == ["a.mp4"]
    page.click("#video button[aria-label=Clear]")
    until(lambda: page_of_one.uploaded() == [], "the first video goes")
    page.set_input_files(DROP, videos / "b.mp4")
    page.wait_for_selector("#frames .heat")
    page.close()
    until(lambda: page_of_one.uploaded() == [], "the second one goes with the page")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_two_models_side_by_side_on_any_window(models_of, tmp_path, visitor, videos, scheme, width):
    with served(models_of("scan", "none"), tmp_path) as compared:
        page = visitor(compared.address, scheme, width)
        page.set_input_files(DROP, videos / "a.mp4")
        page.wait_for_selector("#frames .heat")
        page.wait_for_selector("#frames .bimba-no-map:has-text('No map of what was selected by none (no compressor)')")
        ask(page, "Which?", "one\ntwo")
        page.wait_for_selector("#answers :text('Video read once by each model: 1 question answered.')")
        boxes = page.locator("#answers .answer").all()
        assert [box.locator("h4").inner_text() for box in boxes] == ["scan (mamba)", "none (no compressor)"]
        for box in boxes:
            assert box.locator(".bars li").count() == 2
            assert re.search(r"\d\.\d\d s$", box.inner_text())
        left, right = (box.bounding_box() for box in boxes)
        assert (left["y"] == right["y"]) == (width > 1000)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        above, below = (page.locator(part).bounding_box() for part in ("#answers", "#frames"))
        assert above["y"] + above["height"] <= below["y"]
        assert page.evaluate("document.querySelector('#answers').scrollHeight") <= above["height"] + 1
        unnamed = page.evaluate(UNNAMED)
        assert unnamed == []
        assert page.evaluate(CONTRAST) >= 4.5


# What a screen reader would have no words for.
UNNAMED = """() => [...document.querySelectorAll("img, input, textarea, button, iframe, svg[role=img]")]
  .filter(e => e.getClientRects().length)
  .filter(e => !(e.hasAttribute("alt") || e.ariaLabel || e.title || e.innerText?.trim() || e.labels?.length))
  .map(e => e.outerHTML.slice(0, 200))"""
# The least contrast of the page's own words with what is behind them, as WCAG counts it.
CONTRAST = """() => {
  const light = c => c.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c.slice(0, 3);
  } return [255, 255, 255]; };
  const words = document.querySelectorAll(
    "#header p, #stages li span, .bimba-count, .bimba-soft, .bimba-exchange :is(h3, h4), .option, .percent");
  return Math.min(...[...words].filter(e => e.innerText?.trim()).map(e => {
    const [a, b] = [rgb(getComputedStyle(e).color).slice(0, 3), behind(e)].map(light).sort((x, y) => y - x);
    return (a + .05) / (b + .05); })); }"""
