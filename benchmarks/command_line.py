"""How long a person waits: for help, for the first answer about a new clip, for the second answer in a chat.

``python benchmarks/command_line.py`` writes a film of 60 seconds (640 x 360, 30 frames per second) and runs ``bimba``
on it as a shell would. It prints the quickest of several runs, and the CPU time (user and system, decoding process
included) of the one that took least, which on a busy machine says more.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

SECONDS, FPS, WIDTH, HEIGHT = 60, 30, 640, 360
BIMBA = [sys.executable, "-m", "bimba"]


def write_clip(path: Path) -> None:
    """A camera that moves over a blurred picture, with noise: as hard to decode as a film of this size."""
    rng = np.random.default_rng(0)
    blurred = Image.fromarray(rng.integers(0, 256, (45, 80, 3), dtype=np.uint8))
    picture = np.asarray(blurred.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(SECONDS * FPS):
            x, y = int(WIDTH / 2 * (1 + np.sin(i / 60))), int(HEIGHT / 2 * (1 + np.cos(i / 47)))
            noise = rng.integers(-6, 7, (HEIGHT, WIDTH, 1))
            pixels = np.clip(picture[y : y + HEIGHT, x : x + WIDTH] + noise, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def run(*arguments: str) -> None:
    subprocess.run([*BIMBA, *arguments], check=True, stdout=subprocess.DEVNULL)


def second_answer_s(clip: str) -> float:
    """From the moment that a second question is typed to the end of its answer."""
    with subprocess.Popen(
        [*BIMBA, "chat", clip], text=True, bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as chat:
        assert chat.stdin is not None and chat.stdout is not None  # noqa: S101  # they were asked for
        for question in ("Which digit appears in the video?", "And after that?"):
            start = time.perf_counter()
            chat.stdin.write(f"{question}\n")
            chat.stdout.readline()
        return time.perf_counter() - start


def measure(what: str, repeat: int, work: Callable[[], float | None]) -> None:
    """Prints the least of each time; ``work`` may return seconds of its own."""
    walls, cpus = [], []
    for _ in range(repeat):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        own = work()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(time.perf_counter() - start if own is None else own)
        cpus.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    print(f"{what:45s} {min(walls):6.2f} s   whole process, CPU {min(cpus):5.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="runs of each (default: %(default)s)")
    repeat = parser.parse_args().repeat
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        clip = str(Path(folder) / "clip.mp4")
        write_clip(Path(clip))
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; quickest of {repeat} runs")
        measure("bimba --help", repeat, lambda: run("--help"))
        measure("bimba ask, first answer about a 60 s clip", repeat, lambda: run("ask", clip, "Which digit appears?"))
        measure("bimba chat, second answer", repeat, lambda: second_answer_s(clip))


if __name__ == "__main__":
    main()
