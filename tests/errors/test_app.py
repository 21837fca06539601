"""``bimba app``: what is said before anything is served."""

from __future__ import annotations

import socket
import sys

import pytest

from tests.errors.case import FAILED, USAGE, Case


def _app(name: str, words: list[str], *says: str, code: int = USAGE) -> Case:
    return Case(name, ["app", "--checkpoint", "good", "--device", "cpu", "--port", "0", *words], says, code)


CASES = [
    _app("a_base_of_nothing", ["--compare-base", "x"], "--compare-base is the base of --compare; give both"),
    _app("twice_the_same", ["--compare", "good"], "both good; give two different ones"),
    _app("no_queries", ["--queries", "0"], "--queries is 0; expected 1 or more"),
    _app("no_tokens", ["--max-new-tokens", "0"], "--max-new-tokens is 0; expected 1 or more"),
    _app("no_frames", ["--frames", "0"], "--num-frames is 0; expected 1 or more"),
    _app("no_pooling", ["--temporal-pooling", "0"], "--temporal-pooling is 0; expected 1 or more"),
    _app("no_uploads", ["--max-upload-mb", "0"], "--max-upload-mb 0 and --keep-minutes 60; both must be numbers above"),
    _app("any_upload", ["--max-upload-mb", "inf"], "--max-upload-mb inf and", "both must be numbers above 0"),
    _app("no_number", ["--max-upload-mb", "nan"], "--max-upload-mb nan and", "both must be numbers above 0"),
    _app("no_minutes", ["--keep-minutes", "nan"], "--keep-minutes nan", "both must be numbers above 0"),
    _app("no_such_port", ["--port", "70000"], "--port is 70000; expected 0 (any that is free) to 65535"),
    _app("another_machine", ["--host", "192.0.2.1"], "cannot be served at 192.0.2.1", "another --port", code=FAILED),
    _app("no_checkpoint", ["--checkpoint", "nowhere"], "There is no checkpoint folder nowhere", code=FAILED),
    _app("too_many_frames", ["--frames", "100000"], "this model takes at most 512", "Use fewer frames", code=FAILED),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_says_what_is_wrong(case, refused):
    assert refused(case) == ""


def test_a_port_that_is_taken(refused):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        says = [
            "The page cannot be served at",
            f"127.0.0.1, port {port} (Address already in use)",
            "0 takes a free one",
        ]
        refused(_app("taken", ["--port", port], *says, code=FAILED))


def test_without_gradio(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    says = ["bimba app needs Gradio, which cannot be imported", "Install it: pip install 'bimba[app]'"]
    refused(_app("no_gradio", [], *says, code=FAILED))
