"""Samples per second of packed data (data=streaming) and of the same data as files, and whether they are the same.

    python benchmarks/streaming.py                     48 rendered clips of 96 x 96, two workers, five rounds
    python benchmarks/streaming.py --size 384 --clips 24

Both lie on the local disk, and in its cache: this shows what packing costs or saves where nothing is far away, which is
opening files, and a copy of a clip's bytes to a scratch file. It says nothing of a network, where the bytes take as
long as they take. No figure is printed unless all samples are equal.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

FRAMES = 16


def samples_of(data: Any) -> tuple[list[Any], float]:
    """All batches of an epoch, and how long they took from the first on, in seconds."""
    loader = iter(data.train_dataloader())
    found = [next(loader)]  # until workers are there
    begun_s = time.perf_counter()
    found += loader
    return found, time.perf_counter() - begun_s


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return set(one) == set(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--size", type=int, default=96, help="pixels of a side (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    from bimba.checkpoint import load_pretrained
    from bimba.data.datamodule import VideoQADataModule, streamed_data
    from bimba.data.needle import NeedleConfig
    from bimba.data.needle_files import generate
    from bimba.data.packing import pack

    _, processor = load_pretrained("bimba-tiny")
    with tempfile.TemporaryDirectory(prefix="bimba-streaming-") as name:
        root = Path(name)
        os.environ["BIMBA_INDEX_DIR"] = str(root / "index")
        annotations = generate(root / "needle", "train", arguments.clips, NeedleConfig(size=arguments.size))
        options: dict[str, Any] = {
            "processor": processor, "num_frames": FRAMES, "max_length": 8192, "batch_size": 1, "global_batch_size": 1,
            "num_workers": arguments.workers,
        }  # fmt: skip
        files = VideoQADataModule(str(annotations), str(annotations.parent), **options)
        pack(files.open_anyway(), str(root / "packed"), workers=1)
        chunks = streamed_data(str(root / "packed"), **options)
        size = sum(path.stat().st_size for path in (root / "packed").iterdir())
        what = f"{arguments.clips} clips of {arguments.size} pixels, {size / 1e6:.1f} MB packed"
        print(f"{what}; {FRAMES} frames of each, {arguments.workers} workers")
        rates: dict[str, list[float]] = {"files": [], "chunks": []}
        for kind in (files, chunks):
            kind.setup()
        for _ in range(arguments.rounds):  # in turn, so that other work on the machine meets both
            (of_files, files_s), (of_chunks, chunks_s) = samples_of(files), samples_of(chunks)
            if not equal(of_files, of_chunks) or any(batch["bad_samples"] for batch in of_files):
                print("NOT the same samples: no figure")
                return 1
            rates["files"].append((len(of_files) - 1) / files_s)
            rates["chunks"].append((len(of_chunks) - 1) / chunks_s)
    for kind, found in rates.items():
        print(f"{kind:>6}: {statistics.median(found):.1f} samples/s (median; {min(found):.1f} to {max(found):.1f})")
    ratios = [b / a for a, b in zip(rates["files"], rates["chunks"])]
    print(f"chunks / files: {statistics.median(ratios):.2f} (median of rounds; {min(ratios):.2f} to {max(ratios):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
