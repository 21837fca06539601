"""How long a visitor of ``bimba app`` waits, in a real browser: for the first frame, to be able to ask, for an answer.

    python benchmarks/app.py [--video FILE] [--checkpoint CHECKPOINT] [--times 5]

Needs chromium and playwright (pip install -e ".[dev]"; apt-get install chromium). Each time is a new page; the clock
starts when the file is handed to the page and stops when the browser has the picture. Without ``--video`` it is a film
of 60 s, 640 x 360 at 25 frames per second, made of moving squares.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

SECONDS, RATE, WIDTH, HEIGHT, SQUARE = 60, 25, 640, 360, 40


def write_film(path: Path) -> None:
    squares = np.random.default_rng(0).integers(0, 256, (HEIGHT // SQUARE, WIDTH // SQUARE, 3), dtype=np.uint8)
    picture = squares.repeat(SQUARE, 0).repeat(SQUARE, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(SECONDS * RATE):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * i, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def measure(address: str, video: Path, times: int) -> list[tuple[float, float, float]]:
    """Seconds to the first frame, to all tokens, and from a question to its answer."""
    from playwright.sync_api import sync_playwright

    found = []
    program = shutil.which("chromium") or sys.exit("There is no chromium; apt-get install -y chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context()
        context.set_default_timeout(120_000)
        for _ in range(times):
            page = context.new_page()
            page.goto(address)
            page.wait_for_selector("#ask")
            started = time.perf_counter()
            page.set_input_files("#video input[type=file]", video)
            page.wait_for_function("document.querySelector('#frames img')?.complete")
            first = time.perf_counter() - started
            page.wait_for_selector("#answers .bimba-count")
            ready = time.perf_counter() - started
            page.fill("#options textarea", "3\n7\n1\n9")
            page.fill("#question textarea", "Which digit appears in the video?")
            asked = time.perf_counter()
            page.click("#ask")
            page.wait_for_selector("#answers .bars")
            found.append((first, ready, time.perf_counter() - asked))
            page.close()
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--checkpoint", default="bimba-tiny")
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = arguments.video or Path(folder) / "film.mp4"
        if arguments.video is None:
            write_film(video)
        print(f"{video.name}, {video.stat().st_size / 1e6:.1f} MB")
        command = [sys.executable, "-m", "bimba", "app", "--checkpoint", arguments.checkpoint, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                address = server.stdout.readline().split()[4]
                found = measure(address, video, arguments.times)
            finally:
                server.terminate()
    for name, values in zip(("first frame", "can be asked", "answer"), zip(*found)):
        print(f"{name:14} first page {values[0]:.2f} s   median {statistics.median(values):.2f} s")


if __name__ == "__main__":
    main()
