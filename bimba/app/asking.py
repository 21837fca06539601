"""A question about a session's video: every model answers it, one after the other, word by word."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence

from bimba.app.models import Answered, Model, Models, failure
from bimba.app.reading import draw_map
from bimba.app.sessions import MAX_WAITING, Answer, Exchange, Reading
from bimba.data.prompt import check_options
from bimba.types import BimbaError

log = logging.getLogger(__name__)


def checked_options(text: str) -> list[str]:
    """The options of a question, one a line.

    Raises:
        BimbaError: one, more than 26, or two that are the same.
    """
    options = [line.strip() for line in text.splitlines() if line.strip()]
    if options:
        check_options(options)
    return options


def check_asked(reading: Reading | None, question: str) -> Reading:
    """The video that is asked about, if something can be asked now.

    Raises:
        BimbaError: there is none, it could not be read, too many questions wait, or this is no question.
    """
    if reading is None:
        raise BimbaError("There is no video here (any more). Drop a video first, then ask.")
    if reading.failed:
        raise BimbaError(f"{reading.name} could not be read, so nothing can be asked about it. Drop another video.")
    if not question.strip():
        raise BimbaError("The question is empty; write one.")
    if sum(exchange.is_open for exchange in reading.exchanges) >= MAX_WAITING:
        raise BimbaError(f"{MAX_WAITING} questions wait for an answer already; ask again when one has been answered.")
    return reading


def ask(reading: Reading, models: Models, question: str, options: Sequence[str], short: bool) -> Iterator[None]:
    """Adds the question, then its answers as they come; after each step something has changed in ``reading``."""
    answers = [Answer(model.label) for model in models.all]
    exchange = Exchange(question.strip(), options, answers)
    reading.add(exchange)
    yield
    try:
        while not reading.ready.wait(0.2):
            yield
        for model, answer in zip(models.all, answers):
            if reading.failed:
                answer.state, answer.text = "failed", f"{reading.name} could not be read."
            else:
                yield from _answer(reading, models, model, exchange, answer, short)
            if reading.closed:
                return
        reading.num_answered += all(answer.state == "done" for answer in answers)
        yield
    finally:
        for answer in answers:  # nobody waits any more
            if answer.state in ("waiting", "working"):
                answer.state, answer.text = "failed", "interrupted"


def _answer(
    reading: Reading, models: Models, model: Model, exchange: Exchange, answer: Answer, short: bool
) -> Iterator[None]:
    grown, left = threading.Event(), threading.Event()

    def say(text: str) -> None:
        answer.text = text
        grown.set()

    def stopped() -> bool:
        return left.is_set() or reading.closed or models.ended.is_set()

    def job() -> Answered:
        answer.state = "working"
        grown.set()
        return model.answer(reading.keys[model.label], exchange.question, exchange.options, short, say, stopped)

    answering = models.submit(job)
    try:
        while not answering.done():
            if stopped():
                return
            if grown.wait(0.1):
                grown.clear()
                yield
        found = answering.result()
    except BimbaError as error:
        answer.state, answer.text = "failed", reading.plain(error)
        return
    except Exception as error:
        log.exception("An answer failed")
        answer.state, answer.text = "failed", failure(error)
        return
    finally:
        left.set()
        answering.cancel()
    answer.text, answer.probabilities, answer.seconds = found.text, found.probabilities, found.seconds
    answer.state = "done"
    reading.reads[model.label] += found.read_again
    yield
    if found.watched is not None:
        yield from draw_map(reading, models, model, found.watched, exchange.question)
