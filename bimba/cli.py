"""The console script ``bimba``: ``ask`` a video something, ``convert`` a checkpoint, ``doctor`` examines this machine,
``data check`` examines training data, ``data pack`` makes chunks of it for an object store, ``report`` makes one page
of a sweep's runs, ``map`` draws what was selected of a video.

``egoschema-submission`` makes a file for Kaggle of an evaluation's answers, ``prepare`` looks after a benchmark's data.

Nothing heavy is imported until a command needs it, so that ``bimba --help`` is immediate.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from bimba.types import BimbaError, ShortVideos
from lmms_eval_plugin.prepare.sources import SOURCES

USER_ERROR, INTERRUPTED = 2, 130  # exit codes: 2 as argparse, 130 as shells say of Ctrl-C


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bimba", description="Questions about long videos.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

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
    ask.set_defaults(run=run_ask)

    convert = commands.add_parser(
        "convert",
        help="write a checkpoint in another layout",
        description="Writes a checkpoint (ours, LLaVA-Video's, or a BIMBA adapter) in our layout or the original's.",
        epilog="example: bimba convert BIMBA-LLaVA-Qwen2-7B bimba-7b --base LLaVA-Video-7B-Qwen2",
    )
    convert.add_argument("source", metavar="SRC", help="checkpoint folder or name")
    convert.add_argument("destination", metavar="DST", help="folder to write; must not exist yet")
    convert.add_argument("--to", choices=("bimba", "original"), default="bimba", help="layout (default: %(default)s)")
    convert.add_argument("--base", metavar="FOLDER", help="the base of an adapter (default: as its files say)")
    convert.add_argument("--temporal-pooling", type=int, metavar="N", help="override the checkpoint's")
    convert.set_defaults(run=run_convert)

    submission = commands.add_parser(
        "egoschema-submission",
        help="answers of EgoSchema as the file for Kaggle",
        description="Writes the answers of an evaluation as q_uid,answer with answers 0 to 4. Sends nothing.",
        epilog="example: bimba egoschema-submission outputs/evaluate/.../samples/bimba_egoschema.json submission.csv",
    )
    submission.add_argument("samples", metavar="SAMPLES", help="the samples of the evaluation (.jsonl or .json)")
    submission.add_argument("destination", metavar="CSV", help="file to write")
    submission.set_defaults(run=run_egoschema_submission)

    data = commands.add_parser("data", help="check training data, or pack them for an object store")
    of_data = data.add_subparsers(required=True, metavar="COMMAND")
    check, pack = _add_data_check(of_data), _add_data_pack(of_data)
    report, selection = _add_report(commands), _add_map(commands)

    prepare = commands.add_parser(
        "prepare",
        help="check and complete the data of a benchmark",
        description="Checks that a benchmark's questions and videos are where the harness looks for them, links, "
        "extracts or downloads what is missing, and says what is left to do. Exit code 0: ready.",
        epilog="example: bimba prepare videomme --dry-run",
    )
    names = (*SOURCES, "all")
    prepare.add_argument("benchmark", choices=names, metavar="BENCHMARK", help=", ".join(names))
    prepare.add_argument("--dry-run", action="store_true", help="change and download nothing, say what would be done")
    prepare.add_argument("--offline", action="store_true", help="download nothing")
    prepare.add_argument("--hf-home", metavar="DIR", help="the folder of all benchmarks (default: $HF_HOME)")
    prepare.add_argument("--from", dest="origin", metavar="FOLDER", help="a folder with videos or archives of them")
    prepare.add_argument("--subtitles", action="store_true", help="also what the tasks with subtitles read")
    prepare.add_argument("--probe", action="store_true", help="open every video and list those that are unreadable")
    prepare.add_argument("--json", metavar="FILE", help="write the findings as JSON too")
    prepare.set_defaults(run=run_prepare)

    doctor = commands.add_parser("doctor", help="what this machine can run")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=run_doctor)
    for command in (ask, convert, submission, check, pack, report, selection, prepare, doctor):
        # Also after the command's name; SUPPRESS keeps it from undoing the one before.
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _add_data_check(commands: Any) -> argparse.ArgumentParser:
    check: argparse.ArgumentParser = commands.add_parser(
        "check",
        help="find missing files, unreadable videos, malformed rows, long samples",
        description="Checks training data before a GPU waits for it. Exits with 1 if something is wrong.",
        epilog="example: bimba data check mixture.yaml --video-root LLaVA-Video-178K --all --html check.html",
    )
    _add_mixture(check)
    check.add_argument("--checkpoint", help="whose tokens are counted (default: the configuration's, or bimba-tiny)")
    check.add_argument("--frames", type=int, metavar="N", help="frames read of each video (default: the checkpoint's)")
    check.add_argument("--max-length", type=int, metavar="N", help="the longest sample, in tokens")
    check.add_argument("--sample", type=int, default=200, metavar="N", help="media to decode (default: %(default)s)")
    check.add_argument("--all", action="store_true", help="decode and tokenise all of them")
    check.add_argument("--workers", type=int, default=4, metavar="N", help="threads that decode (default: %(default)s)")
    check.add_argument("--html", metavar="FILE", help="write the findings as a page, too")
    check.set_defaults(run=run_data_check)
    return check


def _add_report(commands: Any) -> argparse.ArgumentParser:
    report: argparse.ArgumentParser = commands.add_parser(
        "report",
        help="one page of a sweep's runs",
        description="Collects finished runs of train.py with their evaluations into report.html, report.md, plots, "
        "cells.csv and report.json: accuracy with intervals over seeds and questions, costs, losses, settings.",
        epilog="example: bimba report outputs/train/sweep/... --out outputs/report",
    )
    report.add_argument("runs", metavar="RUNS", nargs="+", help="run folders, sweep folders, or patterns of them")
    report.add_argument("--out", metavar="FOLDER", required=True, help="folder to write")
    report.add_argument("--baseline", default="pool", metavar="NAME", help="compared with (default: %(default)s)")
    report.add_argument("--evaluation", metavar="NAME", help="shown where one is (default: test, or the commonest)")
    report.add_argument("--wandb", metavar="PROJECT", help="to Weights & Biases too, offline unless WANDB_MODE=online")
    report.set_defaults(run=run_report)
    return report


def run_report(arguments: argparse.Namespace) -> int:
    from bimba.report.sweep.files import report

    out = Path(arguments.out)
    command = shlex.join(["bimba", "report", *arguments.runs, "--out", arguments.out])
    sweep, page = report(arguments.runs, out, arguments.baseline, arguments.evaluation, command)
    if arguments.wandb:
        from bimba.report.sweep.tracking import log_to_wandb

        log_to_wandb(arguments.wandb, out, sweep, page)
    for notice in page.notices:
        print(notice, file=sys.stderr)
    print(f"The report on {len(sweep.cells)} finished cells is {out / 'report.html'}.")
    return 0


def _add_data_pack(commands: Any) -> argparse.ArgumentParser:
    pack: argparse.ArgumentParser = commands.add_parser(
        "pack",
        help="make chunks of training data, to be streamed from an object store",
        description="Packs rows and media into litdata's chunks, for train.py data=streaming data.source=OUTPUT.",
        epilog="example: bimba data pack mixture.yaml s3://bucket/llava --video-root LLaVA-Video-178K",
    )
    _add_mixture(pack, ["output"])
    pack.add_argument("--allow-missing", action="store_true", help="leave out media that are not there")
    pack.add_argument("--workers", type=int, default=4, metavar="N", help="processes (default: %(default)s)")
    pack.add_argument("--chunk-mb", type=int, default=64, metavar="N", help="size of a chunk (default: %(default)s)")
    pack.set_defaults(run=run_data_pack)
    return pack


def _add_mixture(command: argparse.ArgumentParser, others: Sequence[str] = ()) -> None:
    """The arguments that say which data are meant, with ``others`` between the mixture and its keys."""
    command.add_argument(
        "mixture",
        metavar="MIXTURE",
        help="a mixture (.yaml), annotations (.json, .jsonl), or needle, conf/data/needle.yaml, ...",
    )
    for name in others:
        command.add_argument(name, metavar=name.upper(), help="a folder, or an address such as s3://bucket/folder")
    command.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="keys of the configuration, for such a name")
    command.add_argument("--video-root", metavar="FOLDER", help="holds the videos, by data_source")
    command.add_argument("--image-root", metavar="FOLDER", help="holds the images (default: the video root)")
    command.add_argument("--annotation-root", metavar="FOLDER", help="where relative json_paths start")


def _add_map(commands: Any) -> argparse.ArgumentParser:
    selection: argparse.ArgumentParser = commands.add_parser(
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
    selection.set_defaults(run=run_map)
    return selection


def run_map(arguments: argparse.Namespace) -> int:
    _hush_libraries()
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


def run_data_check(arguments: argparse.Namespace) -> int:
    if arguments.sample < 0 or arguments.workers < 1:
        raise BimbaError("--sample takes 0 or more media, --workers 1 or more threads.")
    _hush_libraries()
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
        arguments.frames,
        arguments.max_length,
    )
    sample = None if arguments.all else arguments.sample
    found = check(data, tokenizer, sample, arguments.workers, Console(stderr=True).print)
    print_findings(found, Console())
    if arguments.html:
        write_html(Path(arguments.html), found)
        print(f"The findings are in {arguments.html}.")
    return 1 if found.num_troubles else 0


def run_data_pack(arguments: argparse.Namespace) -> int:
    if arguments.workers < 1 or arguments.chunk_mb < 1:
        raise BimbaError("--workers takes 1 or more processes, --chunk-mb 1 or more megabytes.")
    _hush_libraries()
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
    print(f"The data are in {output}. Train on them:\n  python train.py data=streaming data.source={output}")
    return 0


def run_ask(arguments: argparse.Namespace) -> int:
    if arguments.short and arguments.options:
        raise BimbaError(
            "--short and --options do not go together: options already ask for a letter. Give one of them."
        )
    _hush_libraries()
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


def _hush_libraries() -> None:
    """Keeps transformers' progress bars and hints out of the answers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _print_answer(answer: dict[str, Any], options: list[str] | None) -> None:
    if options is None:
        print(answer["answer"], flush=True)
        return
    chosen = options[list(answer["probabilities"]).index(answer["answer"])]
    shares = "  ".join(f"{letter} {100 * p:.0f} %" for letter, p in answer["probabilities"].items())
    print(f"{answer['answer']}: {chosen}   ({shares})", flush=True)


def run_convert(arguments: argparse.Namespace) -> int:
    _hush_libraries()
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


def run_egoschema_submission(arguments: argparse.Namespace) -> int:
    from lmms_eval_plugin.tasks.bimba_egoschema.submission import (
        FULL_SET,
        NO_ANSWER,
        read_predictions,
        write_submission,
    )

    destination = Path(arguments.destination)
    if destination.suffix != ".csv":
        raise BimbaError(f"The submission is to be {destination}; expected a name that ends in .csv.")
    predictions = read_predictions(Path(arguments.samples))
    write_submission(destination, predictions)
    unread = sum(index == NO_ANSWER for index in predictions.values())
    print(f"{len(predictions)} of {FULL_SET} answers are in {destination}; {unread} were no letter: {NO_ANSWER}.")
    return 0


def run_prepare(arguments: argparse.Namespace) -> int:
    from lmms_eval_plugin.prepare.command import run

    ready = run(
        arguments.benchmark,
        arguments.hf_home,
        arguments.origin,
        dry_run=arguments.dry_run,
        offline=arguments.offline,
        subtitles=arguments.subtitles,
        probe=arguments.probe,
        json_file=arguments.json,
    )
    return 0 if ready else 1


def run_doctor(arguments: argparse.Namespace) -> int:
    from bimba.report.doctor import examine

    findings = examine()
    if arguments.json:
        print(json.dumps({finding.what: finding.state for finding in findings}, indent=2))
    else:
        from bimba.report.table import print_table

        print_table("bimba doctor", ("What", "State"), [[finding.what, finding.state] for finding in findings])
    return 0 if all(finding.ok for finding in findings) else 1


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


if __name__ == "__main__":
    sys.exit(main())
