"""``bimba map``: which moments and places of a video the compressor selected."""

from __future__ import annotations

import argparse
from pathlib import Path

from bimba.cli.common import (
    Commands,
    UsageError,
    add_command,
    add_model,
    add_sampling,
    check_arguments,
    open_engine,
    quick_imports,
)
from bimba.cli.stages import Stages


def add(commands: Commands) -> list[argparse.ArgumentParser]:
    selection = add_command(
        commands,
        "map",
        "which moments and places of a video the compressor selected",
        "Draws what the compressor's last scan selected of a video: two pictures, a page, the numbers.",
        [
            "bimba map match.mp4 --checkpoint CHECKPOINT --out map",
            'bimba map match.mp4 --checkpoint CHECKPOINT --out map --question "Who scored?" --short',
        ],
    )
    selection.add_argument("video", metavar="VIDEO", help="a video file")
    selection.add_argument("--out", required=True, metavar="FOLDER", help="folder to write; must not exist yet")
    selection.add_argument("--question", help="asked too; what a question-conditioned model selects depends on it")
    selection.add_argument("--options", nargs="+", metavar="OPTION", help="2 to 26 options of the question")
    selection.add_argument("--short", action="store_true", help="ask for a single word or phrase")
    selection.add_argument(
        "--queries", type=int, default=128, metavar="N", help="how many queries are looked at (default: %(default)s)"
    )
    add_sampling(selection)
    add_model(selection)
    selection.set_defaults(run=run)
    return [selection]


def run(arguments: argparse.Namespace) -> int:
    if arguments.question is None and (arguments.options or arguments.short):
        raise UsageError("--options and --short are of a question; give one with --question.")
    if arguments.question is not None and not arguments.question.strip():
        raise UsageError("The question is empty; give the text of a question.")
    check_arguments(arguments)
    with Stages() as stages:
        stages.enter("loading")
        with quick_imports(stages.leave):
            from bimba.inference.selection import look
            from bimba.report.selection_page import check_new, write_selection
        out = Path(arguments.out)
        check_new(out)  # before a model is loaded
        engine = open_engine(arguments, stages.leave)
        engine.on_stage = stages.enter
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
        stages.enter("drawing")
        write_selection(out, looked.frames, looked.selection, facts)
        stages.leave()
        if looked.answer is not None:
            print(looked.answer)
        print(f"The map is in {out}; open {out / 'selection.html'}.")
        return 0
