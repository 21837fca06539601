"""``bimba doctor``: what this machine can run, tried out, and a block for bug reports."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bimba.cli.common import FAILED, OK, Commands, add_command, hush_libraries, quick_imports
from bimba.cli.stages import Stages

if TYPE_CHECKING:
    from bimba.report.doctor import Finding

# What changes how things run. Never the whole environment: it holds keys.
_VARIABLES = (
    "BIMBA_",
    "TRITON_INTERPRET",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "HF_HUB_OFFLINE",
)


def add(commands: Commands) -> list[argparse.ArgumentParser]:
    doctor = add_command(
        commands,
        "doctor",
        "what this machine can run",
        "Says which versions and devices are here, what state every backend is in and what to do about it, and tries "
        "everything out on a small clip, which takes a few seconds. Exits with 1 if something is wrong.",
        ["bimba doctor", "bimba doctor --report    # Markdown, for a bug report", "bimba doctor --json --no-test"],
    )
    how = doctor.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON")
    how.add_argument("--report", action="store_true", help="print Markdown, to be pasted into a bug report")
    doctor.add_argument("--no-test", action="store_true", help="try nothing out")
    doctor.set_defaults(run=run)
    return [doctor]


def run(arguments: argparse.Namespace) -> int:
    with Stages() as stages:
        stages.enter("looking at this machine")
        findings = _findings(stages, tries_out=not arguments.no_test)
    if arguments.json:
        print(json.dumps({finding.what: finding.state for finding in findings}, indent=2))
    elif arguments.report:
        print(_report(findings), end="")
    else:
        _print(findings)
    return OK if all(finding.ok for finding in findings) else FAILED


def _findings(stages: Stages, tries_out: bool) -> list[Finding]:
    from bimba.report.doctor import Finding, examine
    from bimba.runs import git_state

    state = git_state(Path(__file__).parent)
    commit = "" if state is None else f", commit {state['commit'][:12]}{' with changes' if state['dirty'] else ''}"
    found = [Finding("bimba", version("bimba") + commit)]
    with quick_imports(stages.leave):
        found += examine()
    if tries_out and all(finding.ok for finding in found):  # what is missing would only be missed again
        with quick_imports(stages.leave):
            hush_libraries()
            from bimba.cli.self_test import self_test
        found += self_test(lambda step: stages.enter(f"trying out: {step}"))
    return found


def _print(findings: Sequence[Finding]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, show_header=False, padding=(0, 1), title="bimba doctor", title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    groups = [finding.what.partition(":")[0] for finding in findings]
    for i, finding in enumerate(findings):
        first_of_group = i > 0 and ":" in finding.what and groups[i] != groups[i - 1]
        if first_of_group:
            table.add_section()
        style = "" if finding.ok else "bold red"  # as it is, whatever brackets it has: "bimba[cuda]" is no markup
        table.add_row(Text(finding.what, style), Text(finding.state, style))
    Console().print(table)
    wrong = [finding.what for finding in findings if not finding.ok]
    print(f"Wrong: {', '.join(wrong)}." if wrong else "Nothing is wrong.", end=" ")
    print("For a bug report: bimba doctor --report")


def _report(findings: Sequence[Finding]) -> str:
    """Everything as Markdown, folded up, without the name of the home folder."""
    from bimba.report.table import markdown_table

    rows = [[finding.what, f"{'' if finding.ok else '**wrong:** '}{finding.state}"] for finding in findings]
    rows += [[name, value] for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)]
    rows.append(["command", sys.executable])
    rows = [[cell.replace(str(Path.home()), "~").replace("|", "\\|") for cell in row] for row in rows]
    wrong = sum(not finding.ok for finding in findings)
    summary = f"bimba doctor: {f'{wrong} wrong' if wrong else 'nothing wrong'}"
    return f"<details><summary>{summary}</summary>\n\n{markdown_table(('What', 'State'), rows)}\n</details>\n"
