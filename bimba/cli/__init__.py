"""The console script ``bimba``; one file for each of its commands.

Nothing heavy is imported until a command needs it, so that ``bimba --help`` is immediate.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from io import TextIOWrapper

from bimba.cli import (
    app,
    ask,
    chat,
    convert,
    data,
    doctor,
    egoschema_submission,
    hydra_scripts,
    prepare,
    report,
    selection,
)
from bimba.cli.common import FAILED, INTERRUPTED, WRONG_USAGE, Command, UsageError
from bimba.types import BimbaError, memory_error

COMMANDS = (ask, chat, app, selection, hydra_scripts, data, prepare, report, convert, egoschema_submission, doctor)
DEBUG = "BIMBA_DEBUG"

_EPILOG = """\
examples:
  bimba doctor
  bimba ask match.mp4 "Who scored?" --checkpoint CHECKPOINT
  bimba chat match.mp4 --checkpoint CHECKPOINT
  bimba COMMAND --help

Exit codes: 0 done, 1 it failed or found something wrong, 2 wrong arguments, 130 Ctrl-C.
Errors are one line; --debug, or the variable BIMBA_DEBUG=1, shows where they come from."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bimba",
        description="Questions about long videos.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bimba {version('bimba')}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Command)
    for module in COMMANDS:
        for command in module.add(commands):
            # Also after the command's name; SUPPRESS keeps it from undoing the one before.
            command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        Its exit code: 0 done, 1 an error or a finding, 2 wrong arguments, 130 Ctrl-C.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: what a terminal cannot write is no error
    arguments = build_parser().parse_args(argv)
    debug = arguments.debug or os.environ.get(DEBUG, "0") not in ("", "0")
    try:
        return int(arguments.run(arguments))
    except BimbaError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return WRONG_USAGE if isinstance(error, UsageError) else FAILED
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (RuntimeError, MemoryError) as error:
        remedy = getattr(arguments, "less_memory", "Close other programs, or go on where there is more of it.")
        if debug or (short := memory_error(error, remedy)) is None:
            raise
        print(f"error: {short}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # whoever read the output has closed it, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again when it flushes
        return FAILED
