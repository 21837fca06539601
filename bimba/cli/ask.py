"""``bimba ask``: questions about one video."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimba.cli.common import (
    Commands,
    UsageError,
    add_answers,
    add_command,
    add_model,
    add_sampling,
    check_arguments,
    open_engine,
)
from bimba.cli.stages import Stages
from bimba.types import BimbaError

if TYPE_CHECKING:
    from bimba.inference.engine import Video


def add(commands: Commands) -> list[argparse.ArgumentParser]:
    ask = add_command(
        commands,
        "ask",
        "answer questions about a video file",
        "Reads a video once and answers every question about it, one answer a line. Answers are all that goes to "
        "standard output; progress is shown on a terminal.",
        [
            'bimba ask match.mp4 "Who scored?" "When?" --checkpoint CHECKPOINT',
            'bimba ask match.mp4 "Who scored?" --options "Number 7" "Number 9"',
            "bimba ask match.mp4 --questions questions.txt --json > answers.jsonl",
            "bimba ask match.mp4 --questions - --short < questions.txt",
        ],
    )
    ask.add_argument("video", metavar="VIDEO", help="a video file")
    ask.add_argument("questions", metavar="QUESTION", nargs="*", default=[], help="one or more questions")
    ask.add_argument(
        "--questions",
        dest="file",
        metavar="FILE",
        help="a text file with one question a line, asked after the others; - reads standard input",
    )
    ask.add_argument("--options", nargs="+", metavar="OPTION", help="2 to 26 options to choose from, for all questions")
    ask.add_argument("--short", action="store_true", help="ask for a single word or phrase")
    add_answers(ask)
    ask.add_argument("--json", action="store_true", help="print one JSON object a line for each answer")
    add_sampling(ask)
    add_model(ask)
    ask.set_defaults(run=run)
    return [ask]


def run(arguments: argparse.Namespace) -> int:
    check_arguments(arguments)
    questions = [*arguments.questions, *_questions_in(arguments.file)]
    if not questions:
        raise UsageError(
            "There is no question. Give one or more behind the video, or --questions FILE with one a line (- reads "
            "standard input)."
        )
    if not all(question.strip() for question in questions):
        raise UsageError("The question is empty; give the text of a question.")
    with Stages() as stages:
        stages.enter("loading")
        engine = open_engine(arguments, stages.leave)
        engine.on_stage = stages.enter
        video = engine.encode(arguments.video, num_frames=arguments.num_frames, short_videos=arguments.short_videos)
        new_tokens = 0
        for question in questions:
            start = time.perf_counter()
            answer = _answer(video, question, arguments, stages)
            stages.leave()
            new_tokens += answer["new_tokens"]
            answer["seconds"] = round(time.perf_counter() - start, 3)
            _print_answer(answer, arguments)
        num_tokens = engine.processor.num_video_tokens(video.num_frames)
        if stages.is_shown:
            print(stages.summary(video.num_frames, num_tokens, new_tokens), file=sys.stderr)
    return 0


def _questions_in(file: str | None) -> list[str]:
    """The lines of a file that are not empty."""
    if file is None:
        return []
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise BimbaError(f"--questions {file}: {error.strerror}. Expected a text file with one question a line.") from (
            error
        )
    except UnicodeDecodeError as error:
        raise BimbaError(f"--questions {file}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    questions = [line.strip() for line in text.splitlines() if line.strip()]
    if not questions:
        raise BimbaError(f"--questions {file}: there is no question in it. Expected one a line.")
    return questions


def _answer(video: Video, question: str, arguments: argparse.Namespace, stages: Stages) -> dict[str, Any]:
    """The fields of an answer in JSON, but for its time."""
    from bimba.cli.streaming import CountTokens
    from bimba.data.prompt import open_ended

    if arguments.options:
        stages.enter("answering")
        choice = video.choose(question, arguments.options)
        return {
            "question": question,
            "answer": choice.letter,
            "option": _option(choice.letter, choice.probabilities, arguments.options),
            "probabilities": choice.probabilities,
            "prompt_tokens": choice.prompt_tokens,
            "new_tokens": 0,
        }
    prompt = open_ended(question) if arguments.short else question
    found = video.generate(prompt, arguments.max_new_tokens, streamer=CountTokens(stages))
    return {
        "question": question,
        "answer": found.text,
        "prompt_tokens": found.prompt_tokens,
        "new_tokens": found.new_tokens,
    }


def _option(letter: str, probabilities: dict[str, float], options: Sequence[str]) -> str:
    return options[list(probabilities).index(letter)]


def _print_answer(answer: dict[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(_as_json({"video": arguments.video, **answer}), flush=True)
    elif arguments.options:
        shares = "  ".join(f"{letter} {100 * p:.0f} %" for letter, p in answer["probabilities"].items())
        print(f"{answer['answer']}: {answer['option']}   ({shares})", flush=True)
    else:
        print(answer["answer"], flush=True)


def _as_json(fields: dict[str, Any]) -> str:
    """Letters as they are where standard output has them, else in JSON's escapes."""
    line = json.dumps(fields, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(fields)
    return line
