"""How long training waits for videos: 720p clips through the loader, with two workers, beside compute of equal length.

    python benchmarks/training_data.py                 40 clips of ten seconds, 32 frames of each
    python benchmarks/training_data.py --clips 12

A sample is read in this process first: the processor time that it takes is the time that each step then computes (in
matrix products on one thread, processor time too). So workers and steps together need two cores whole. What counts is
the time a step stands waiting for its batch, as a share of waiting and computing, without the first batches, for which
the workers must start. No figure is printed if the loader's pixels are not those read here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from decoding import write_video
from measure import header

from bimba.checkpoint import load_pretrained
from bimba.data.datamodule import VideoQADataModule
from bimba.data.isolated import read_videos_with

WORKERS, NUM_FRAMES, FPS = 2, 32, 24
STARTING = 2 * WORKERS  # what the workers read ahead


def data_of(folder: Path, clips: int, seconds: int) -> VideoQADataModule:
    """As ``data=llava_video`` of conf/ would be, over a few files that are asked for again and again."""
    for number in range(3):
        write_video(folder / f"{number}.mp4", "h264", 1280, 720, seconds * FPS)
    turns = [{"from": "human", "value": "<image>\nWhat moves?"}, {"from": "gpt", "value": "A texture."}]
    rows = [{"id": str(i), "video": f"{i % 3}.mp4", "conversations": turns} for i in range(clips)]
    (folder / "clips.json").write_text(json.dumps(rows))
    _, processor = load_pretrained("bimba-tiny")
    data = VideoQADataModule(
        str(folder / "clips.json"), str(folder), processor, NUM_FRAMES, 8192, 1, 1, num_workers=WORKERS
    )
    data.setup()
    return data


def read_here(data: VideoQADataModule) -> tuple[float, dict[str, Any]]:
    """The processor time of a sample, decoded in this process, and the pixels of three of them, by their ids."""
    pixels, times_s = {}, []
    read_videos_with(None, None, isolate=False)
    for index in range(3):
        began_s = time.process_time()
        sample: Any = data.dataset[index]
        times_s.append(time.process_time() - began_s)
        pixels[sample["id"]] = sample["pixel_values_videos"][0]
    read_videos_with(None, None, isolate=True)  # as it is unless one asks for the other
    return statistics.median(times_s), pixels


def compute(length_s: float, matrix: torch.Tensor) -> None:
    end_s = time.process_time() + length_s
    while time.process_time() < end_s:
        torch.mm(matrix, matrix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=40, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=10, help="of a clip (default: %(default)s)")
    arguments = parser.parse_args()
    clips = arguments.clips
    torch.set_num_threads(1)
    matrix = torch.randn(256, 256)
    with tempfile.TemporaryDirectory() as name:
        data = data_of(Path(name), clips + STARTING, arguments.seconds)
        length_s, expected = read_here(data)
        waits_s, steps_s, compared = [], [], 0
        loader = iter(data.train_dataloader())
        for _ in range(clips + STARTING):
            began_s = time.perf_counter()
            batch = next(loader)
            came_s = time.perf_counter()
            compute(length_s, matrix)
            waits_s.append(came_s - began_s)
            steps_s.append(time.perf_counter() - came_s)
            if batch.get("bad_samples"):
                sys.exit(f"A clip could not be read: {batch['bad_samples'][0].error}: no figures.")
            if (sample := expected.get(batch["ids"][0])) is not None:
                compared += 1
                if not torch.equal(batch["pixel_values_videos"][0], sample):
                    sys.exit(f"Clip {batch['ids'][0]} is another one by way of the loader: no figures.")
        del loader
    if compared != len(expected):
        sys.exit(f"{compared} of {len(expected)} clips came to be compared: no figures.")
    waited_s, computed_s = sum(waits_s[STARTING:]), sum(steps_s[STARTING:])
    print(f"{header()}, {os.cpu_count()} cores, {WORKERS} workers")
    print(f"reading a clip takes {length_s:.2f} s of processor time, and so does a step: {clips} steps")
    print(
        f"data wait {100 * waited_s / (waited_s + computed_s):.1f} %  "
        f"(waited {waited_s:.1f} s, computed {computed_s:.1f} s by the clock)"
    )


if __name__ == "__main__":
    main()
