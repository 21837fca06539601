"""What a list of a million samples costs: the index once, the start of a run, and memory in each worker.

    python benchmarks/data.py                      1.3 million rows, about a gigabyte of JSON in a temporary folder
    python benchmarks/data.py --rows 100000

The list is generated: LLaVA-Video-178K's layout, four turns of words per row, no media, so that a worker does all but
decode. A worker's own memory is what it does not share with the process that it was forked from: its private pages.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS_PER_FILE = 50_000
WORKERS, READS = 2, 4_000  # rows that are read before memory is looked at, all over the list
MOST_START_S, MOST_WORKER_MB = 10, 200  # what must be reached


def write_list(folder: Path, rows: int) -> int:
    """Writes the annotation files of a mixture; returns their size in bytes."""
    chance = random.Random(0)
    words = [("".join(chance.choices("abcdefghijklmnopqrst", k=chance.randint(2, 9)))) for _ in range(5000)]
    total = 0
    for start in range(0, rows, ROWS_PER_FILE):
        name = f"{start // ROWS_PER_FILE:03d}_m_youtube_v0_1"
        turns = [
            [{"from": ("human", "gpt")[turn % 2], "value": " ".join(chance.choices(words, k=25))} for turn in range(4)]
            for _ in range(min(ROWS_PER_FILE, rows - start))
        ]
        content = [
            {"id": f"{start + i}", "data_source": name, "conversations": conversation}
            for i, conversation in enumerate(turns)
        ]
        (folder / name).mkdir()
        path = folder / name / f"{name}_oe_qa_processed.json"
        path.write_text(json.dumps(content))
        total += path.stat().st_size
    return total


def memory_mb(pid: int | str = "self") -> dict[str, float]:
    """Resident and private memory of a process, and the most that was ever resident."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in [*rollup[1:], *status] if line.endswith("kB")}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"resident": kilobytes["Rss"] / 1e3, "own": private / 1e3, "peak": kilobytes["VmHWM"] / 1e3}


def start_a_run(folder: Path) -> dict[str, object]:
    """What ``train.py`` does with the data before its first step, in this process."""
    begun_s = time.perf_counter()
    from bimba.checkpoint import load_pretrained
    from bimba.data.datamodule import mixture_data

    _, processor = load_pretrained("bimba-tiny")
    imported_s = time.perf_counter()
    before = memory_mb()
    data = mixture_data(
        [{"json_path": "*/*.json"}], str(folder), processor=processor, num_frames=8, max_length=8192,
        global_batch_size=8, batch_size=8, num_workers=WORKERS,
    )  # fmt: skip
    data.setup()
    opened_s = time.perf_counter()
    after = memory_mb()  # now: what is shared with workers is no longer counted as this process's own
    batches = iter(data.train_dataloader())
    next(batches)
    first_s = time.perf_counter()
    workers = [child.pid for child in batches._workers]  # type: ignore[attr-defined]
    at_first = [memory_mb(pid) for pid in workers]
    for _ in range(READS // 8):
        next(batches)
    return {
        "rows": len(data.dataset),
        "import_s": imported_s - begun_s,
        "open_s": opened_s - imported_s,
        "first_batch_s": first_s - opened_s,
        "parent_added_mb": after["own"] - before["own"],
        "workers_at_first": at_first,
        "workers": [memory_mb(pid) for pid in workers],
        "peak_mb": memory_mb()["peak"],
    }


def run(folder: Path) -> dict[str, object]:
    command = [sys.executable, __file__, "--start", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "BIMBA_INDEX_DIR": str(folder / ".index")}
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_300_000)
    parser.add_argument("--start", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start:
        print(json.dumps(start_a_run(Path(arguments.start))))
        return 0
    with tempfile.TemporaryDirectory(prefix="bimba-list-") as name:
        folder = Path(name)
        size = write_list(folder, arguments.rows)
        print(f"{arguments.rows} rows, {size / 1e6:.0f} MB of JSON, {WORKERS} workers")
        once, again = run(folder), run(folder)
        index = sum(path.stat().st_size for path in folder.rglob("rows.arrow"))
        print(f"index, once: {once['open_s']:.1f} s, peak {once['peak_mb']:.0f} MB; {index / 1e6:.0f} MB on disk")
        print(f"start: {again['open_s']:.2f} s to open the list, {again['first_batch_s']:.2f} s to the first batch")
        print(f"       ({again['import_s']:.1f} s before that to import everything and load bimba-tiny)")
        print(f"memory the list adds to the training process: {again['parent_added_mb']:.0f} MB of its own")
        worst = 0.0
        for when, label in (("workers_at_first", "at the first batch"), ("workers", f"after {READS} rows")):
            for i, worker in enumerate(again[when]):  # type: ignore[arg-type, var-annotated]
                worst = max(worst, worker["own"])
                own, resident, peak = worker["own"], worker["resident"], worker["peak"]
                print(
                    f"worker {i} {label}: own {own:.0f} MB (resident {resident:.0f}, peak {peak:.0f}, shared included)"
                )
    start_s = float(again["open_s"]) + float(again["first_batch_s"])  # type: ignore[arg-type]
    reached = start_s < MOST_START_S and worst < MOST_WORKER_MB
    print(f"{'reached' if reached else 'NOT reached'}: start {start_s:.1f} of {MOST_START_S} s, worker {worst:.0f} of "
          f"{MOST_WORKER_MB} MB")  # fmt: skip
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
