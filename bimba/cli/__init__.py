"""The console script ``bimba``; one file for each of its commands.

Nothing heavy is imported until a command needs it, so that ``bimba --help`` is immediate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bimba.cli import ask, convert, data, doctor, egoschema_submission, hydra_scripts, prepare, report, selection
from bimba.types import BimbaError

COMMANDS = (ask, selection, hydra_scripts, data, prepare, report, convert, egoschema_submission, doctor)
USER_ERROR, INTERRUPTED = 2, 130  # exit codes: 2 as argparse, 130 as shells say of Ctrl-C


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bimba", description="Questions about long videos.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        for command in module.add(commands):
            # Also after the command's name; SUPPRESS keeps it from undoing the one before.
            command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except BimbaError as error:
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
