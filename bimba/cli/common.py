"""What the commands share: arguments that mean the same everywhere, and how a model is opened."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from bimba.types import BimbaError, ShortVideos

if TYPE_CHECKING:
    from bimba.inference.engine import VideoQA

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

OK, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130  # exit codes; 2 as argparse, 130 as shells say of Ctrl-C

# Words of the command line, known without torch: a wrong one is refused before anything is loaded.
DTYPES = ("float32", "bfloat16", "float16", "float64")
VIDEO_BACKENDS = ("auto", "decord", "torchcodec", "pyav")


class UsageError(BimbaError):
    """Arguments that do not go together, or that no file or model is needed to refuse."""


class Command(argparse.ArgumentParser):
    """Takes a command's words wherever they stand: ``ask VIDEO --short QUESTION`` as ``ask VIDEO QUESTION --short``.

    argparse gives words that may be left out their place at the first option, and takes none behind it (tried with
    Python 3.11.7, 3.12.1 and 3.13.0).
    """

    _is_parsing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        may_be_none = any(action.nargs == "*" for action in self._get_positional_actions())
        if self._is_parsing or not may_be_none:
            return super().parse_known_args(args, namespace)
        self._is_parsing = True  # parse_known_intermixed_args comes here, for the options first, then for the words
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_parsing = False


def add_command(
    commands: Commands, name: str, summary: str, description: str, examples: Sequence[str]
) -> argparse.ArgumentParser:
    """A command whose help ends with examples, one a line."""
    word = "example" if len(examples) == 1 else "examples"
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="\n  ".join([f"{word}:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_base(command: argparse.ArgumentParser) -> None:
    command.add_argument("--base", metavar="FOLDER", help="the base of an adapter (default: as its files say)")
    command.add_argument(
        "--temporal-pooling", type=int, metavar="N", help="frames that one query stands for (default: the checkpoint's)"
    )


def add_model(command: argparse.ArgumentParser) -> None:
    """Which model, where, and in which numbers: what :func:`open_engine` reads."""
    group = command.add_argument_group("model")
    group.add_argument("--checkpoint", default="bimba-tiny", help="checkpoint folder or name (default: %(default)s)")
    add_base(group)  # type: ignore[arg-type]  # a group takes arguments as a parser does
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: %(default)s)")
    group.add_argument("--dtype", choices=DTYPES, help="what it computes in (default: the checkpoint's)")
    reports_memory(command)


def reports_memory(command: argparse.ArgumentParser) -> None:
    """A command whose memory goes to a model and a video; ``main`` says so where it runs out."""
    command.set_defaults(less_memory="Give fewer --frames, a smaller checkpoint, or another --device.")


def add_sampling(command: argparse.ArgumentParser, short_videos: ShortVideos = "error") -> None:
    """How frames are read of a video; ``short_videos``: what becomes of one with too few if nothing else is said."""
    group = command.add_argument_group("video")
    group.add_argument(
        "--num-frames", "--frames", type=int, metavar="N", help="frames to sample (default: the checkpoint's number)"
    )
    group.add_argument(
        "--short-videos",
        choices=get_args(ShortVideos),
        default=short_videos,
        help="what becomes of a video with fewer frames than that: refuse it, or repeat frames (default: %(default)s)",
    )
    group.add_argument(
        "--video-backend",
        choices=VIDEO_BACKENDS,
        help="what decodes it (default: the variable BIMBA_VIDEO_BACKEND, or auto)",
    )


def add_answers(command: argparse.ArgumentParser) -> None:
    command.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer, in tokens (default: 256)")


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raises a UsageError for a number of frames, of tokens or of queries that is none."""
    for name in ("num_frames", "temporal_pooling", "max_new_tokens", "queries"):
        number = getattr(arguments, name, None)
        if number is not None and number < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {number}; expected 1 or more.")


def check_arguments(arguments: argparse.Namespace) -> None:
    """Says what is wrong with numbers, video and options before anything is imported or loaded.

    Raises:
        UsageError: as :func:`check_numbers`, or options that no question has.
        VideoDecodeError: no file that could be a video.
    """
    check_numbers(arguments)
    options = getattr(arguments, "options", None)
    if options is not None:
        from bimba.data.prompt import check_options

        try:
            check_options(options)
        except BimbaError as error:
            raise UsageError(f"--options: {error}") from error
        if arguments.short:
            raise UsageError(
                "--short and --options do not go together: options already ask for a letter. Give one of them."
            )
    from bimba.data.video.files import check_is_media

    check_is_media(Path(arguments.video))


def hush_libraries() -> None:
    """Keeps transformers' progress bars and hints out of the answers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def open_engine(arguments: argparse.Namespace, on_interrupt: Callable[[], None] = lambda: None) -> VideoQA:
    """The model that the arguments of :func:`add_model` and :func:`add_sampling` name.

    Args:
        on_interrupt: what to do when Ctrl-C ends the program while it imports.

    Raises:
        BimbaError: as ``VideoQA.from_pretrained``, or no such video backend.
    """
    from bimba.data.isolated import read_videos_with, start_early

    read_videos_with(getattr(arguments, "video_backend", None))
    start_early()
    with quick_imports(on_interrupt):
        hush_libraries()
        from bimba.inference.engine import VideoQA
    return VideoQA.from_pretrained(
        arguments.checkpoint,
        device=arguments.device,
        dtype=arguments.dtype,
        temporal_pooling=arguments.temporal_pooling,
        base=arguments.base,
    )


@contextmanager
def quick_imports(on_interrupt: Callable[[], None] = lambda: None) -> Iterator[None]:
    """For importing torch and transformers, which takes seconds.

    No garbage is collected meanwhile: there is none, and looking for it takes a seventh of the time. Ctrl-C ends the
    program there and then: raised halfway through an import, it comes out as anything but a KeyboardInterrupt.
    """

    def end(number: int, frame: FrameType | None) -> None:
        on_interrupt()
        os.write(2, b"interrupted\n")
        os._exit(INTERRUPTED)

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not ignored, as of a job in the background
    replaced = usual and threading.current_thread() is threading.main_thread()
    if replaced:
        signal.signal(signal.SIGINT, end)
    collects, is_first = gc.isenabled(), "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if is_first:
            gc.freeze()  # what modules hold lives as long as the program
        if collects:
            gc.enable()
        if replaced:
            signal.signal(signal.SIGINT, signal.default_int_handler)
