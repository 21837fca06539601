"""``bimba report``: one page of a sweep's runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from bimba.cli.common import Commands, add_command

BASELINE = "pool"


def add(commands: Commands) -> list[argparse.ArgumentParser]:
    report = add_command(
        commands,
        "report",
        "one page of a sweep's runs",
        "Collects finished runs of train.py with their evaluations into report.html, report.md, plots, cells.csv and "
        "report.json: accuracy with intervals over seeds and questions, costs, losses, settings.",
        ["bimba report outputs/train/sweep/... --out outputs/report"],
    )
    report.add_argument("runs", metavar="RUNS", nargs="+", help="run folders, sweep folders, or patterns of them")
    report.add_argument("--out", metavar="FOLDER", required=True, help="folder to write")
    report.add_argument(
        "--baseline",
        default=BASELINE,
        metavar="NAME",
        help="compared with: a compressor, or a setting such as query_position=appended (default: %(default)s)",
    )
    report.add_argument("--evaluation", metavar="NAME", help="shown where one is (default: test, or the commonest)")
    report.add_argument("--wandb", metavar="PROJECT", help="to Weights & Biases too, offline unless WANDB_MODE=online")
    report.set_defaults(run=run)
    return [report]


def run(arguments: argparse.Namespace) -> int:
    from bimba.report.sweep.files import report

    out = Path(arguments.out)
    words = ["bimba", "report", *arguments.runs, "--out", arguments.out]
    words += [] if arguments.baseline == BASELINE else ["--baseline", arguments.baseline]
    words += [] if arguments.evaluation is None else ["--evaluation", arguments.evaluation]
    sweep, page = report(arguments.runs, out, arguments.baseline, arguments.evaluation, shlex.join(words))
    if arguments.wandb:
        from bimba.report.sweep.tracking import log_to_wandb

        log_to_wandb(arguments.wandb, out, sweep, page)
    for notice in page.notices:
        print(notice, file=sys.stderr)
    print(f"The report on {len(sweep.cells)} finished cells is {out / 'report.html'}.")
    return 0
