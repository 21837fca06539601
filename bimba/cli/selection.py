"""``bimba map``: which moments and places of a video the compressor selected."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from bimba.cli.common import Commands, hush_libraries
from bimba.types import ShortVideos


def add(commands: Commands) -> list[argparse.ArgumentParser]:
    selection = commands.add_parser(
        "map",
        help="which moments and places of a video the compressor selected",
        description="Draws what the compressor's last scan selected of a video: two pictures, a page, the numbers.",
        epilog='example: bimba map match.mp4 --question "Who scored?" --checkpoint CHECKPOINT --out map',
    )
    selection.add_argument("video", metavar="VIDEO", help="a video file")
    selection.add_argument("--out", required=True, metavar="FOLDER", help="folder to write; must not exist yet")
    selection.add_argument("--question", help="asked too; what a question-conditioned model selects depends on it")
    selection.add_argument("--options", nargs="+", metavar="OPTION", help="2 to 26 options of the question")
    selection.add_argument("--short", action="store_true", help="ask for a single word or phrase")
    selection.add_argument(
        "--checkpoint", default="bimba-tiny", help="checkpoint folder or name (default: %(default)s)"
    )
    selection.add_argument("--base", metavar="FOLDER", help="the base of an adapter (default: as its files say)")
    selection.add_argument(
        "--num-frames", "--frames", type=int, metavar="N", help="frames to sample (default: the checkpoint's number)"
    )
    selection.add_argument(
        "--short-videos", choices=get_args(ShortVideos), default="error", help="as of ask (default: %(default)s)"
    )
    selection.add_argument(
        "--queries", type=int, default=128, metavar="N", help="how many queries are looked at (default: %(default)s)"
    )
    selection.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: %(default)s)")
    selection.set_defaults(run=run)
    return [selection]


def run(arguments: argparse.Namespace) -> int:
    hush_libraries()
    from bimba.inference import VideoQA
    from bimba.inference.selection import look
    from bimba.inference.source import identify
    from bimba.report.selection_page import check_new, write_selection

    out = Path(arguments.out)
    check_new(out)
    identify(arguments.video, 1, arguments.short_videos)  # a missing file is said before a model is loaded
    engine = VideoQA.from_pretrained(arguments.checkpoint, device=arguments.device, base=arguments.base)
    looked = look(
        engine,
        arguments.video,
        num_frames=arguments.num_frames,
        question=arguments.question,
        options=arguments.options,
        short=arguments.short,
        short_videos=arguments.short_videos,
        num_queries=arguments.queries,
    )
    facts = {
        "video": arguments.video,
        "checkpoint": arguments.checkpoint,
        "question": arguments.question,
        "answer": looked.answer,
    }
    write_selection(out, looked.frames, looked.selection, facts)
    if looked.answer is not None:
        print(looked.answer)
    print(f"The map is in {out}; open {out / 'selection.html'}.")
    return 0
