"""``bimba prepare``: a benchmark's data."""

from __future__ import annotations

import argparse
from pathlib import Path

from bimba.cli.common import Commands, UsageError, add_command
from lmms_eval_plugin.prepare.sources import SOURCES


def add(commands: Commands) -> list[argparse.ArgumentParser]:
    prepare = add_command(
        commands,
        "prepare",
        "check and complete the data of a benchmark",
        "Checks that a benchmark's questions and videos are where the harness looks for them, links, extracts or "
        "downloads what is missing, and says what is left to do. Exit code 0: ready.",
        ["bimba prepare all --dry-run", "bimba prepare videomme --from /disk/Video-MME"],
    )
    names = (*SOURCES, "all")
    prepare.add_argument("benchmark", choices=names, metavar="BENCHMARK", help=", ".join(names))
    prepare.add_argument("--dry-run", action="store_true", help="change and download nothing, say what would be done")
    prepare.add_argument("--offline", action="store_true", help="download nothing")
    prepare.add_argument("--hf-home", metavar="DIR", help="the folder of all benchmarks (default: $HF_HOME)")
    prepare.add_argument("--from", dest="origin", metavar="FOLDER", help="a folder with videos or archives of them")
    prepare.add_argument("--subtitles", action="store_true", help="also what the tasks with subtitles read")
    prepare.add_argument("--probe", action="store_true", help="open every video and list those that are unreadable")
    prepare.add_argument("--json", metavar="FILE", help="write the findings as JSON too, every missing file named")
    prepare.set_defaults(run=run)
    return [prepare]


def run(arguments: argparse.Namespace) -> int:
    origin = None if arguments.origin is None else Path(arguments.origin).expanduser().absolute()
    if origin is not None and not origin.is_dir():
        raise UsageError(
            f"--from {arguments.origin} is not a folder; expected one that holds videos, or archives of them."
        )
    if origin is not None and arguments.benchmark == "all":
        raise UsageError("--from names the folder of one benchmark; give its name rather than `all`.")
    from lmms_eval_plugin.prepare.command import run

    ready = run(
        arguments.benchmark,
        arguments.hf_home,
        origin,
        dry_run=arguments.dry_run,
        offline=arguments.offline,
        subtitles=arguments.subtitles,
        probe=arguments.probe,
        json_file=arguments.json,
    )
    return 0 if ready else 1
