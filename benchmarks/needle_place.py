"""Does a compressor forget? Accuracy by the quarter of the video in which the needle shows.

    python benchmarks/needle_place.py outputs/ablation/* --data data/needle_ablation/test

Each RUN is a folder of a run, or of the cells of a sweep, with evaluations of ``python evaluate.py`` in it; those of
one argument are counted together. Queries behind the whole sequence (``query_position: appended``) that are scanned
forward alone have an early needle farthest behind them: if accuracy falls towards the first quarter, the scan forgets
over such a distance. Percent right, with Wilson's 95 % interval over the questions (not over seeds).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from bimba.report.accuracy import wilson_interval

QUARTERS = 4


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--data", required=True, type=Path, help="the folder of the clips, with annotations.json")
    parser.add_argument("--evaluation", default="test", help="which of a run's evaluations (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        places = places_in(options.data)
    except FileNotFoundError as error:
        print(f"error: {error}. Expected --data to be a folder of needle clips.", file=sys.stderr)
        return 2
    width = max(len(run.name) for run in options.runs)
    print(" " * width, *(f"{f'quarter {i + 1}':>20}" for i in range(QUARTERS)))
    for run in options.runs:
        answers = sorted(run.glob(f"**/evaluation/{options.evaluation}/samples/*.json"))
        if not answers:
            print(f"{run.name:{width}}  no evaluation {options.evaluation!r} in {run}")
            continue
        print(f"{run.name:{width}}", *(f"{said(right):>20}" for right in by_quarter(answers, places)))
    return 0


def places_in(data: Path) -> dict[str, int]:
    """Of each clip with one needle, by its name: the quarter in which the needle begins."""
    frames = json.loads((data / "config.json").read_text())["config"]["num_video_frames"]
    clips = json.loads((data / "annotations.json").read_text())
    return {clip["id"]: clip["needles"][0]["start"] * QUARTERS // frames for clip in clips if len(clip["needles"]) == 1}


def by_quarter(answers: Iterable[Path], places: dict[str, int]) -> list[list[float]]:
    """How right each question was, by the quarter of its needle."""
    right: list[list[float]] = [[] for _ in range(QUARTERS)]
    for path in answers:
        for sample in json.loads(path.read_text())["samples"]:
            place = places.get(sample["doc"]["id"])
            if place is not None:
                right[place].append(sample["accuracy"])
    return right


def said(right: Sequence[float]) -> str:
    if not right:
        return "-"
    low, high = wilson_interval(sum(right), len(right))
    return f"{100 * sum(right) / len(right):.1f} ({100 * low:.1f}-{100 * high:.1f})"


if __name__ == "__main__":
    sys.exit(main())
