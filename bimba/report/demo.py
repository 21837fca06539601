"""The demo's closing table: the same questions before and after training, from two runs of ``evaluate.py``.

python -m bimba.report.demo --before outputs/demo/before --after outputs/demo/after --out outputs/demo/summary.json
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bimba.report.files import read_summary, write_json
from bimba.report.table import interval, percent, print_table, write_markdown
from bimba.types import BimbaError

COLUMNS = ("Task", "Before", "After", "95 % interval", "Chance", "Questions")
TASK_PREFIX = "bimba_needle_"  # the demo has no other tasks, so its tables say "retrieval"


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Joins two summaries of ``evaluate.py``.

    Returns:
        ``{task: {before, after, chance, n}}``: accuracies as fractions, n questions.

    Raises:
        BimbaError: the two runs did not answer the same questions.
    """
    asked_before = {task: score["n"] for task, score in before["tasks"].items()}
    asked_after = {task: score["n"] for task, score in after["tasks"].items()}
    if asked_before != asked_after:
        raise BimbaError(
            f"The runs answered different questions: before {asked_before}, after {asked_after}; "
            "evaluate both with the same benchmark and limit."
        )
    return {
        task.removeprefix(TASK_PREFIX): {
            "before": before["tasks"][task]["accuracy"],
            "after": score["accuracy"],
            "chance": score["chance"],
            "n": score["n"],
        }
        for task, score in after["tasks"].items()
    }


def rows(summary: dict[str, dict[str, Any]], after: dict[str, Any]) -> list[list[str]]:
    """One row per task, for ``COLUMNS``; the interval is that of the accuracy after training."""
    scores = {task.removeprefix(TASK_PREFIX): score for task, score in after["tasks"].items()}
    return [
        [
            task,
            percent(s["before"]),
            percent(s["after"]),
            interval(scores[task]["low"], scores[task]["high"]),
            percent(s["chance"]),
            str(s["n"]),
        ]
        for task, s in summary.items()
    ]


def next_steps(checkpoint: str) -> str:
    """What to try after the demo, with this checkpoint in the commands."""
    return "\n".join(
        [
            "What to try next:",
            *_activation(),
            f'  bimba ask VIDEO.mp4 "Which digit appears in the video?" --short --checkpoint {checkpoint}',
            f"  lmms-eval --model bimba --model_args pretrained={checkpoint} --tasks bimba_needle --batch_size 1",
            "  python train.py --help",
        ]
    )


def _activation() -> list[str]:
    """What makes the shell find these commands if it is not in the virtual environment that has them: that of make."""
    activate = Path(sys.prefix) / "bin" / "activate"
    used = os.path.realpath(os.environ.get("VIRTUAL_ENV", os.devnull)) == os.path.realpath(sys.prefix)
    if sys.prefix == sys.base_prefix or used or not activate.is_file():
        return []
    here = os.path.relpath(activate)
    return [f"  source {shlex.quote(str(activate) if here.startswith('..') else here)}"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bimba.report.demo", description="Compares two evaluations.")
    parser.add_argument("--before", type=Path, required=True, help="output_dir of evaluate.py before training")
    parser.add_argument("--after", type=Path, required=True, help="output_dir of evaluate.py after training")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write; a .md file goes beside it")
    options = parser.parse_args(arguments)
    try:
        before, after = read_summary(options.before), read_summary(options.after)
        summary = compare(before, after)
        write_json(options.out, summary)
        table_rows = rows(summary, after)
        write_markdown(options.out.with_suffix(".md"), "Before and after training", COLUMNS, table_rows)
    except BimbaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_table("Held-out needles, before and after training", COLUMNS, table_rows)
    print(next_steps(after["checkpoint"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
