"""``bimba chat``: a conversation about a video, in the terminal or through a pipe."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import closing, suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING

from bimba.cli.common import (
    FAILED,
    OK,
    Commands,
    add_answers,
    add_command,
    add_model,
    add_sampling,
    check_arguments,
    open_engine,
)
from bimba.cli.stages import Stages, rate
from bimba.types import BimbaError

if TYPE_CHECKING:
    from bimba.inference.conversation import Conversation
    from bimba.inference.engine import VideoQA

HELP = """\
/help          this
/reset         forget the conversation; the video stays read
/video PATH    go on with another video
/frames N      read the video again, with N frames
/quit          end, as Ctrl-D does
Ctrl-C stops an answer. Anything else is a question."""


def add(commands: Commands) -> list[argparse.ArgumentParser]:
    chat = add_command(
        commands,
        "chat",
        "talk about a video file",
        "A conversation about a video. Each answer knows what was said before, and the video is read once. Questions "
        "come from standard input, a line each; answers go to standard output as their words come.\n\n"
        f"{HELP}",
        [
            "bimba chat match.mp4 --checkpoint CHECKPOINT",
            "bimba chat match.mp4 < questions.txt > answers.txt",
        ],
    )
    chat.add_argument("video", metavar="VIDEO", help="a video file")
    add_answers(chat)
    add_sampling(chat)
    add_model(chat)
    chat.set_defaults(run=run)
    return [chat]


def run(arguments: argparse.Namespace) -> int:
    check_arguments(arguments)
    with Stages() as stages:
        stages.enter("loading")
        engine = open_engine(arguments, stages.leave)
        engine.on_stage = stages.enter
        talk = Talk(engine, arguments, stages)
        talk.read(arguments.video, arguments.num_frames)
        return talk.listen()


class Talk:
    """The conversation, and what the lines that somebody types do to it.

    At a terminal an error or Ctrl-C costs the line that it happens in. Through a pipe, errors are told, too, and the
    exit code says that there was one; Ctrl-C ends the program.
    """

    def __init__(self, engine: VideoQA, arguments: argparse.Namespace, stages: Stages):
        self.engine, self.arguments, self.stages = engine, arguments, stages
        self.is_typed = sys.stdin.isatty()
        self.path: str
        self.num_frames: int | None
        self.chat: Conversation

    def read(self, path: str, num_frames: int | None) -> None:
        """Begins a conversation about a video, once that is read."""
        video = self.engine.encode(path, num_frames=num_frames, short_videos=self.arguments.short_videos)
        self.stages.leave()
        self.path, self.num_frames, self.chat = path, num_frames, video.chat()
        if self.stages.is_shown:
            num_tokens = self.engine.processor.num_video_tokens(video.num_frames)
            self._say(f"{path}: {self.stages.summary(video.num_frames, num_tokens, 0)}")
            self._say("Ask about it. /help lists the commands, Ctrl-D ends.")

    def listen(self) -> int:
        """Answers line after line, until they end.

        Returns:
            The exit code.
        """
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # what is no UTF-8 is the mistake of its line alone
        if self.is_typed:
            with suppress(ImportError):  # not every Python has it
                import readline  # noqa: F401  # input() edits lines with it, and recalls them
        failed = False
        while (line := self._next_line()) is not None and line != "/quit":
            self.stages.seconds.clear()
            try:
                self._do(line)
            except BimbaError as error:
                self.stages.leave()
                self._say(f"error: {error}")
                failed = True
            except KeyboardInterrupt:
                self.stages.leave()
                if not self.is_typed:
                    raise
                print(flush=True)
                self._say("stopped")
        return FAILED if failed and not self.is_typed else OK

    def _next_line(self) -> str | None:
        """What was typed, without the space around it; None at the end."""
        if not self.is_typed:
            line = sys.stdin.readline()
            return line.strip() if line else None
        while True:
            try:
                return input("> " if sys.stdout.isatty() else "").strip()
            except EOFError:
                self._say("")
                return None
            except KeyboardInterrupt:
                self._say("\n/quit or Ctrl-D ends.")

    def _do(self, line: str) -> None:
        command, _, words = line.partition(" ")
        words = words.strip()
        if not command.startswith("/"):
            if line:
                self._answer(line)
        elif command == "/help":
            self._say(HELP)
        elif command == "/reset":
            self.chat.reset()
            self._say("The conversation starts anew. The video stays read.")
        elif command == "/video":
            if not words:
                raise BimbaError("/video takes the path of a video file: /video match.mp4")
            self.read(os.path.expanduser(_unquoted(words)), self.num_frames)
        elif command == "/frames":
            if not words.isdigit():
                raise BimbaError(f"/frames takes a number of frames, not {words!r}: /frames 16")
            self.read(self.path, int(words))
        else:
            raise BimbaError(f"There is no command {command}; /help lists those there are.")

    def _answer(self, question: str) -> None:
        start, begun = time.perf_counter(), False
        self.stages.enter("answering")
        with closing(self.chat.say(question, self.arguments.max_new_tokens)) as pieces:  # Ctrl-C stops it at once
            for piece in pieces:
                piece = piece if begun else piece.lstrip()
                if piece and not begun:
                    self.stages.leave()
                    begun = True
                print(piece, end="", flush=True)
        self.stages.leave()
        print(flush=True)
        if self.stages.is_shown and self.chat.last is not None:
            seconds = time.perf_counter() - start
            said = rate(self.chat.last.new_tokens, seconds)
            self._say(f"({said}, {seconds:.2f} s; {self.chat.num_tokens} of {self.engine.max_length} tokens used)")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _unquoted(path: str) -> str:
    """A path as a shell would have it, if somebody put quotes around it."""
    return path[1:-1] if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"" else path
