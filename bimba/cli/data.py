"""``bimba data check`` examines training data, ``bimba data pack`` makes chunks of it for an object store."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bimba.cli.common import Commands, UsageError, add_command, hush_libraries, quick_imports


def add(commands: Commands) -> list[argparse.ArgumentParser]:
    data = commands.add_parser("data", help="check training data, or pack them for an object store")
    of_data = data.add_subparsers(required=True, metavar="COMMAND")
    return [_add_check(of_data), _add_pack(of_data)]


def _add_check(commands: Commands) -> argparse.ArgumentParser:
    check = add_command(
        commands,
        "check",
        "find missing files, unreadable videos, malformed rows, long samples",
        "Checks training data before a GPU waits for it. Exits with 1 if something is wrong.",
        [
            "bimba data check mixture.yaml --video-root LLaVA-Video-178K --all --html check.html",
            "bimba data check needle",
        ],
    )
    _add_mixture(check)
    check.add_argument("--checkpoint", help="whose tokens are counted (default: the configuration's, or bimba-tiny)")
    check.add_argument(
        "--num-frames", "--frames", type=int, metavar="N", help="frames read of each video (default: the checkpoint's)"
    )
    check.add_argument("--max-length", type=int, metavar="N", help="the longest sample, in tokens")
    check.add_argument("--sample", type=int, default=200, metavar="N", help="media to decode (default: %(default)s)")
    check.add_argument("--all", action="store_true", help="decode and tokenise all of them")
    check.add_argument("--workers", type=int, default=4, metavar="N", help="threads that decode (default: %(default)s)")
    check.add_argument("--html", metavar="FILE", help="write the findings as a page, too")
    check.set_defaults(run=_check)
    return check


def _check(arguments: argparse.Namespace) -> int:
    if arguments.sample < 0 or arguments.workers < 1:
        raise UsageError("--sample takes 0 or more media, --workers 1 or more threads.")
    with quick_imports():
        hush_libraries()
        from rich.console import Console

        from bimba.report.data_check import check, find_data, print_findings
        from bimba.report.data_html import write_html

    data, tokenizer = find_data(
        arguments.mixture,
        arguments.overrides,
        arguments.checkpoint,
        arguments.video_root,
        arguments.image_root,
        arguments.annotation_root,
        arguments.num_frames,
        arguments.max_length,
    )
    sample = None if arguments.all else arguments.sample
    found = check(data, tokenizer, sample, arguments.workers, Console(stderr=True).print)
    print_findings(found, Console())
    if arguments.html:
        write_html(Path(arguments.html), found)
        print(f"The findings are in {arguments.html}.")
    return 1 if found.num_troubles else 0


def _add_pack(commands: Commands) -> argparse.ArgumentParser:
    pack = add_command(
        commands,
        "pack",
        "make chunks of training data, to be streamed from an object store",
        "Packs rows and media into litdata's chunks, for bimba train data=streaming data.source=OUTPUT.",
        ["bimba data pack mixture.yaml s3://bucket/llava --video-root LLaVA-Video-178K"],
    )
    _add_mixture(pack, ["output"])
    pack.add_argument("--allow-missing", action="store_true", help="leave out media that are not there")
    pack.add_argument("--workers", type=int, default=4, metavar="N", help="processes (default: %(default)s)")
    pack.add_argument("--chunk-mb", type=int, default=64, metavar="N", help="size of a chunk (default: %(default)s)")
    pack.set_defaults(run=_pack)
    return pack


def _pack(arguments: argparse.Namespace) -> int:
    if arguments.workers < 1 or arguments.chunk_mb < 1:
        raise UsageError("--workers takes 1 or more processes, --chunk-mb 1 or more megabytes.")
    with quick_imports():
        hush_libraries()
        from rich.console import Console

        from bimba.data.packing import pack
        from bimba.report.data_check import find_data, write_first

    say = Console(stderr=True).print
    data, _ = find_data(
        arguments.mixture,
        arguments.overrides,
        None,
        arguments.video_root,
        arguments.image_root,
        arguments.annotation_root,
    )
    write_first(data, say)
    output = arguments.output
    pack(data.open_anyway(), output, arguments.workers, arguments.chunk_mb, arguments.allow_missing, say)
    print(f"The data are in {output}. Train on them:\n  bimba train data=streaming data.source={output}")
    return 0


def _add_mixture(command: argparse.ArgumentParser, others: Sequence[str] = ()) -> None:
    """The arguments that say which data are meant, with ``others`` between the mixture and its keys."""
    command.add_argument(
        "mixture",
        metavar="MIXTURE",
        help="a mixture (.yaml), annotations (.json, .jsonl), or needle, conf/data/needle.yaml, ...",
    )
    for name in others:
        command.add_argument(name, metavar=name.upper(), help="a folder, or an address such as s3://bucket/folder")
    command.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", default=[], help="keys of the configuration, for such a name"
    )
    command.add_argument("--video-root", metavar="FOLDER", help="holds the videos, by data_source")
    command.add_argument("--image-root", metavar="FOLDER", help="holds the images (default: the video root)")
    command.add_argument("--annotation-root", metavar="FOLDER", help="where relative json_paths start")
