"""``bimba ask``: questions about one video."""

from __future__ import annotations

import argparse
import json
from typing import Any, get_args

from bimba.cli.common import Commands, hush_libraries
from bimba.types import BimbaError, ShortVideos


def add(commands: Commands) -> list[argparse.ArgumentParser]:
    ask = commands.add_parser(
        "ask",
        help="answer questions about a video file",
        description="Reads a video once and answers every question about it.",
        epilog='example: bimba ask match.mp4 "Who scored?" --options "Number 7" "Number 9" --checkpoint CHECKPOINT',
    )
    ask.add_argument("video", metavar="VIDEO", help="a video file")
    ask.add_argument("questions", metavar="QUESTION", nargs="+", help="one or more questions")
    ask.add_argument("--checkpoint", default="bimba-tiny", help="checkpoint folder or name (default: %(default)s)")
    ask.add_argument("--base", metavar="FOLDER", help="the base of an adapter (default: as its files say)")
    ask.add_argument("--temporal-pooling", type=int, metavar="N", help="override the checkpoint's")
    ask.add_argument("--options", nargs="+", metavar="OPTION", help="2 to 26 options to choose from, for all questions")
    ask.add_argument("--short", action="store_true", help="ask for a single word or phrase")
    ask.add_argument("--frames", type=int, metavar="N", help="frames to sample (default: the checkpoint's number)")
    ask.add_argument(
        "--short-videos",
        choices=get_args(ShortVideos),
        default="error",
        help="what becomes of a video with fewer frames than that: refuse it, or repeat frames (default: %(default)s)",
    )
    ask.add_argument(
        "--video-backend",
        metavar="NAME",
        help="auto, decord, pyav or torchcodec (default: the variable BIMBA_VIDEO_BACKEND, or auto)",
    )
    ask.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer, in tokens (default: 256)")
    ask.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: %(default)s)")
    ask.add_argument("--json", action="store_true", help="print one JSON list, one object per question")
    ask.set_defaults(run=run)
    return [ask]


def run(arguments: argparse.Namespace) -> int:
    if arguments.short and arguments.options:
        raise BimbaError(
            "--short and --options do not go together: options already ask for a letter. Give one of them."
        )
    hush_libraries()
    from bimba.data.isolated import read_videos_with
    from bimba.inference import VideoQA

    read_videos_with(arguments.video_backend)
    engine = VideoQA.from_pretrained(
        arguments.checkpoint,
        device=arguments.device,
        temporal_pooling=arguments.temporal_pooling,
        base=arguments.base,
    )
    video = engine.encode(arguments.video, num_frames=arguments.frames, short_videos=arguments.short_videos)
    answers: list[dict[str, Any]] = []
    for question in arguments.questions:
        if arguments.options:
            choice = video.choose(question, arguments.options)
            answers.append({"question": question, "answer": choice.letter, "probabilities": choice.probabilities})
        else:
            text = video.ask(question, arguments.max_new_tokens, short=arguments.short)
            answers.append({"question": question, "answer": text})
        if not arguments.json:
            _print_answer(answers[-1], arguments.options)
    if arguments.json:
        print(json.dumps(answers, indent=2, ensure_ascii=False))
    return 0


def _print_answer(answer: dict[str, Any], options: list[str] | None) -> None:
    if options is None:
        print(answer["answer"], flush=True)
        return
    chosen = options[list(answer["probabilities"]).index(answer["answer"])]
    shares = "  ".join(f"{letter} {100 * p:.0f} %" for letter, p in answer["probabilities"].items())
    print(f"{answer['answer']}: {chosen}   ({shares})", flush=True)
