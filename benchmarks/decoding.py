"""Decoding that can be trusted: damaged files through the loader, and what isolation costs.

    python benchmarks/decoding.py                    2,000 damaged mp4s, then times
    python benchmarks/decoding.py --damaged 200      fewer
    python benchmarks/decoding.py --keep FOLDER      where the damaged files stay, to look at one

Every damaged file is a sample of a ``VideoQADataset``, read by a ``DataLoader`` with two workers: pixels or a bad
sample with a reason. The exit code is 1 if one is not accounted for, a worker of the loader dies, or one takes longer
than its deadline and half as long again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from blank_frames import blank
from torch.utils.data import DataLoader, Dataset

from bimba.checkpoint import load_pretrained
from bimba.data import isolated
from bimba.data.dataset import VideoQADataset
from bimba.data.video import read_frames
from bimba.types import BadSample

NUM_FRAMES, DEADLINE_S = 8, 20.0
SIZES = [(96, 96, 96, 64), (848, 480, 150, 64), (1280, 720, 150, 64)]  # width, height, frames of the video, frames read
X264 = {"preset": "veryfast", "g": "12", "bf": "2", "threads": "1"}
SOURCES: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {  # name: codec, its options, the container's
    "h264": ("libx264", X264, {}),
    "faststart": ("libx264", X264, {"movflags": "faststart"}),
    "opengop": ("libx264", {**X264, "x264-params": "open-gop=1:scenecut=0"}, {}),
    "fragmented": ("libx264", X264, {"movflags": "frag_keyframe+empty_moov"}),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "keyint=12:log-level=none:pools=1"}, {}),
    "mpeg4": ("mpeg4", {"g": "12", "bf": "2"}, {"movflags": "faststart"}),
    "av1": ("libaom-av1", {"cpu-used": "8", "usage": "realtime", "g": "12"}, {}),
}


def write_video(path: Path, name: str, width: int, height: int, num_frames: int) -> Path:
    """A texture that moves."""
    codec, options, container = SOURCES[name]
    texture = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    texture = texture.repeat(4, axis=0).repeat(4, axis=1)
    with av.open(str(path), "w", options=container) as file:
        stream = file.add_stream(codec, rate=Fraction(24))
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", options
        for number in range(num_frames):
            picture = np.ascontiguousarray(np.roll(texture, (number, 2 * number), axis=(0, 1)))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


def flip_bits(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    for place in random.integers(0, len(data), 2 ** int(random.integers(0, 8))):
        data[place] ^= 1 << int(random.integers(0, 8))


def flip_in_header(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    """Of the boxes that say what is where."""
    start = data.find(b"moov")
    for place in random.integers(start, min(start + 1500, len(data)), 2 ** int(random.integers(0, 6))):
        data[place] ^= 1 << int(random.integers(0, 8))


def truncate(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    del data[int(random.integers(0, len(data))) :]


def splice_header(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    """The header of another file before these frames, or the other way round."""
    cut = int(random.integers(16, len(data)))
    data[:cut] = other[: int(random.integers(16, len(other)))]


def lose_a_stretch(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    start = int(random.integers(0, len(data)))
    del data[start : start + int(random.integers(1, 2000))]


def zero_a_stretch(data: bytearray, other: bytes, random: np.random.Generator) -> None:
    start, length = int(random.integers(0, len(data))), int(random.integers(1, 4000))
    end = min(start + length, len(data))
    data[start:end] = bytes(end - start)


DAMAGES = [flip_bits, flip_in_header, truncate, splice_header, lose_a_stretch, zero_a_stretch]


def write_damaged(folder: Path, count: int, seed: int) -> list[str]:
    """Files named after their number, what they were, and what was done to them; and the rows that ask for them."""
    whole = {name: write_video(folder / f"whole_{name}.mp4", name, 96, 96, 48).read_bytes() for name in SOURCES}
    rows, names = [], []
    for number in range(count):
        random = np.random.default_rng((seed, number))
        source, damage = list(whole)[number % len(whole)], DAMAGES[number // len(whole) % len(DAMAGES)]
        data, other = bytearray(whole[source]), whole[str(random.choice(list(whole)))]
        damage(data, other, random)
        names.append(f"{number:05d}_{source}_{damage.__name__}.mp4")
        (folder / names[-1]).write_bytes(data)
        turns = [{"from": "human", "value": "<image>\nWhat moves?"}, {"from": "gpt", "value": "A texture."}]
        rows.append({"id": str(number), "video": names[-1], "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))
    return names


class Timed(Dataset[tuple[int, str, float]]):
    """Of each sample: its number, why it is bad ("": it is not), and the seconds that it took."""

    def __init__(self, samples: VideoQADataset):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[int, str, float]:
        started = time.perf_counter()
        sample = self.samples[index]
        reason = sample.error.removeprefix(f"{sample.path}: ") if isinstance(sample, BadSample) else ""
        return index, reason, time.perf_counter() - started


def kind_of(reason: str) -> str:
    """A reason without numbers, file names and advice."""
    if not reason:
        return "ok"
    reason = re.sub(r"\(\d+ bytes, ", "(", re.sub(r"\[Errno \d+\] |: '[^']*'", "", reason))
    reason = re.sub(r"\b\d+(\.\d+)?\b", "N", reason).replace("N frame,", "N frames,")
    return re.split(r"\. |, .* ends after", reason)[0][:120]


def read_damaged(folder: Path, names: Sequence[str]) -> bool:
    """Prints what became of the files; whether each is accounted for and none took the loader with it."""
    _, processor = load_pretrained("bimba-tiny", device="cpu")
    samples = VideoQADataset(folder / "rows.json", folder, processor, NUM_FRAMES, max_length=4096)
    found: dict[int, tuple[str, float]] = {}
    started = time.perf_counter()
    try:
        for index, reason, seconds in DataLoader(Timed(samples), num_workers=2, batch_size=None):
            found[index] = (reason, seconds)
    except RuntimeError as error:  # a worker died
        print(f"THE LOADER DIED after {len(found)} of {len(names)} files: {error}")
        return False
    wall_s = time.perf_counter() - started
    slowest = max(found, key=lambda index: found[index][1])
    died = [names[i] for i, (reason, _) in found.items() if "the decoder died" in reason]
    hung = [names[i] for i, (reason, _) in found.items() if "the decoder took longer" in reason]
    late = [names[i] for i, (_, seconds) in found.items() if seconds > 1.5 * DEADLINE_S]
    kinds = Counter(kind_of(reason) for reason, _ in found.values())
    print(f"{len(names)} damaged files through a loader with two workers, in {wall_s:.0f} s:")
    for kind, count in kinds.most_common():
        print(f"  {count:5d}  {kind}")
    for damage in DAMAGES:
        those = [i for i in found if names[i].endswith(f"_{damage.__name__}.mp4")]
        print(f"  {damage.__name__}: {sum(not found[i][0] for i in those)} of {len(those)} read all the same")
    print(f"crashes of the loader: 0; files it hung on: {len(late)}; accounted for: {len(found)} of {len(names)}")
    print(f"decoders that died: {len(died)} {died[:5]}; past {DEADLINE_S:g} s: {len(hung)} {hung[:5]}")
    print(f"slowest: {found[slowest][1]:.2f} s, {names[slowest]}")
    return len(found) == len(names) and not late


def median_ms(calls: Sequence[Callable[..., Any]], repeats: int) -> list[tuple[float, float]]:
    """The median and the shortest of each, taken in turns; what a call returns is freed each time."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, of_call in zip(calls, times):
            started = time.perf_counter()
            call()
            of_call.append(1e3 * (time.perf_counter() - started))
    return [(statistics.median(of_call), min(of_call)) for of_call in times]


def print_times(folder: Path, repeats: int) -> None:
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where decoding processes find blank_frames
    while isolated._free:
        isolated._free.pop().end()
    channel = partial(isolated.call, blank, deadline_s=60, what="blank")
    started = time.perf_counter()
    channel(1, 1, 1)
    print(f"\na decoding process is there after {1e3 * (time.perf_counter() - started):.0f} ms; then, ms a video:")
    print(f"{'frames':>18} {'MB':>6} {'here':>17} {'isolated':>17} {'channel alone':>17} {'a copy':>17}")
    for width, height, length, num_frames in SIZES:
        path = write_video(folder / f"{width}.mp4", "h264", width, height, length)
        pixels = read_frames(path, num_frames).pixels
        if not np.array_equal(isolated.read_frames(path, num_frames).pixels, pixels):
            raise SystemExit("The frames of the other process are others.")
        calls = [
            partial(read_frames, path, num_frames),
            partial(isolated.read_frames, path, num_frames),
            partial(channel, num_frames, height, width),
            pixels.copy,
        ]
        cells = " ".join(f"{f'{median:.1f} ({least:.1f})':>17}" for median, least in median_ms(calls, repeats))
        print(f"{f'{num_frames} of {width}x{height}':>18} {pixels.nbytes / 1e6:6.1f} {cells}")
    print("Median (shortest). The channel alone: frames of that size that nobody decoded, from the other process.")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--damaged", type=int, default=2000, metavar="N", help="damaged files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="of each time; 0: no times (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the damaged files")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[isolated.DEADLINE] = str(DEADLINE_S)
        is_whole = read_damaged(folder, write_damaged(folder, options.damaged, options.seed))
        if options.repeats:
            print_times(folder, options.repeats)
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
