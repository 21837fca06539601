"""A headless Chromium, which these tests need and no test may go without."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def chromium():
    """The browser, with a profile of its own that is thrown away."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise RuntimeError(
            "The tests of bimba app need a browser, and there is none of chromium, chromium-browser, google-chrome. "
            "Install one: sudo apt-get install -y chromium; or leave these tests out: pytest --ignore tests/app/browser"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        context = browser.new_context()  # one, so that Gradio's scripts are loaded but once
        context.set_default_timeout(60_000)
        yield context
        browser.close()


@pytest.fixture(scope="session")
def odd_files(videos: Path, tmp_path_factory) -> Path:
    """A folder with ``notes.mp4``, no video; ``large.mp4``, ``too_large.mp4``: 200 and 210 MB, mostly padding."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "notes.mp4").write_text("These are my notes, and no film.")
    film = (videos / "b.mp4").read_bytes()
    for name, size in (("large", 200 * 10**6), ("too_large", 210 * 2**20)):
        with open(folder / f"{name}.mp4", "wb") as file:  # sparse: a box of type "free" behind the film
            file.write(film + (size - len(film)).to_bytes(4, "big") + b"free")
            file.truncate(size)
    return folder


@pytest.fixture
def visitor(chromium) -> Iterator:
    """address, window -> an open page, which is a session of its own; its requests and mishaps are collected."""
    pages = []

    def visit(address: str, scheme: str = "light", width: int = 1280):
        page = chromium.new_page()
        pages.append(page)
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        page.requested, page.mishaps = [], []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("pageerror", lambda error: page.mishaps.append(str(error)))
        page.on("console", lambda said: page.mishaps.append(said.text) if said.type == "error" else None)
        page.goto(address)
        page.wait_for_selector("#ask")
        return page

    yield visit
    for page in pages:
        page.close()
