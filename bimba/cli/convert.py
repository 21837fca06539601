"""``bimba convert``: a checkpoint in another layout."""

from __future__ import annotations

import argparse
import sys

from bimba.cli.common import Commands, add_base, add_command, check_numbers, hush_libraries, quick_imports


def add(commands: Commands) -> list[argparse.ArgumentParser]:
    convert = add_command(
        commands,
        "convert",
        "write a checkpoint in another layout",
        "Writes a checkpoint (ours, LLaVA-Video's, or a BIMBA adapter) in our layout or the original's.",
        [
            "bimba convert BIMBA-LLaVA-Qwen2-7B bimba-7b --base LLaVA-Video-7B-Qwen2",
            "bimba convert bimba-7b BIMBA-original --to original",
        ],
    )
    convert.add_argument("source", metavar="SRC", help="checkpoint folder or name")
    convert.add_argument("destination", metavar="DST", help="folder to write; must not exist yet")
    convert.add_argument("--to", choices=("bimba", "original"), default="bimba", help="layout (default: %(default)s)")
    add_base(convert)
    convert.set_defaults(run=run)
    return [convert]


def run(arguments: argparse.Namespace) -> int:
    check_numbers(arguments)
    with quick_imports():
        hush_libraries()
        from rich.console import Console
        from rich.progress import Progress

        from bimba.checkpoint import convert

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        shards = progress.add_task("Writing shards", total=None)
        convert(
            arguments.source,
            arguments.destination,
            to=arguments.to,
            base=arguments.base,
            temporal_pooling=arguments.temporal_pooling,
            on_shard=lambda done, total: progress.update(shards, completed=done, total=total),
        )
    print(f"The checkpoint is in {arguments.destination}.")
    return 0
