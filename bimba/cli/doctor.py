"""``bimba doctor``: what this machine can run."""

from __future__ import annotations

import argparse
import json

from bimba.cli.common import Commands


def add(commands: Commands) -> list[argparse.ArgumentParser]:
    doctor = commands.add_parser("doctor", help="what this machine can run")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=run)
    return [doctor]


def run(arguments: argparse.Namespace) -> int:
    from bimba.report.doctor import examine

    findings = examine()
    if arguments.json:
        print(json.dumps({finding.what: finding.state for finding in findings}, indent=2))
    else:
        from bimba.report.table import print_table

        print_table("bimba doctor", ("What", "State"), [[finding.what, finding.state] for finding in findings])
    return 0 if all(finding.ok for finding in findings) else 1
