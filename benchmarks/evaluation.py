"""What reading each video once is worth: many questions about needle videos, the engine against one question at a time.

    python benchmarks/evaluation.py                            3 and 8.56 questions a video, 256 frames of 640 pixels
    python benchmarks/evaluation.py --questions 1 2 4 --frames 64 --size 96 --workers 1

Both answer the same questions in the same shuffled order with bimba-tiny. One at a time decodes, encodes and prefills
the video of each question anew. If an answer differs, no figure is printed. At best a question takes as many times less
as there are questions a video; what an answer itself takes is the rest. Waiting is measured on videos of 96 pixels,
where the model works longer than the decoder. The kill is a SIGKILL of a process that answers with a journal.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import psutil
from measure import header

from bimba.data.needle import NeedleConfig
from bimba.data.needle_files import generate
from bimba.data.prompt import multiple_choice
from bimba.inference import Question, VideoQA
from bimba.inference.answer import Generation
from bimba.inference.journal import Journal, journal_key
from bimba.inference.schedule import WORKERS, Work, answer_each
from bimba.model.config import BimbaConfig
from bimba.model.queries import query_grid
from bimba.model.splice import num_video_tokens
from lmms_eval_plugin.deal import Dealer

MAX_NEW_TOKENS = 16
RANKS = (1, 2, 8)
KILLED_AFTER = 5  # answers


@dataclass(frozen=True)
class Timing:
    wall_s: float
    processor_s: float  # of all threads and of the processes that decode: what others' load leaves alone


def make_videos(root: Path, count: int, frames: int, size: int) -> list[str]:
    generate(root, "test", count, NeedleConfig(num_video_frames=frames, size=size), workers=1)
    return sorted(map(str, (root / "test" / "videos").glob("*.mp4")))


def make_questions(videos: list[str], per_video: float, frames: int) -> list[Question]:
    """Each another order of the options; ``per_video`` is a mean."""
    orders = list(permutations(["1", "3", "7", "9"]))
    questions = []
    for i, video in enumerate(videos):
        for k in range(int((i + 1) * per_video) - int(i * per_video)):
            prompt = multiple_choice("Which digit appears in the video?", orders[k])
            questions.append(Question(video, prompt, frames, MAX_NEW_TOKENS))
    random.Random(0).shuffle(questions)
    return questions


def processor_s() -> float:
    children = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(times.user + times.system for times in children)


def one_at_a_time(engine: VideoQA, questions: list[Question]) -> tuple[list[Generation], Timing]:
    start = time.perf_counter(), processor_s()
    answers = [engine.encode(q.video, q.num_frames).generate(q.prompt, q.max_new_tokens) for q in questions]
    return answers, Timing(time.perf_counter() - start[0], processor_s() - start[1])


def by_video(engine: VideoQA, questions: list[Question], workers: int) -> tuple[list[Generation], Timing, Work]:
    start, work = (time.perf_counter(), processor_s()), Work()
    answers = engine.answer_all(questions, workers=workers, work=work)
    timing = Timing(time.perf_counter() - start[0], processor_s() - start[1])
    return [answer for answer in answers if isinstance(answer, Generation)], timing, work


def compare(videos: list[str], per_video: float, options: argparse.Namespace) -> bool:
    """Prints how much less time a question takes, and how often a video was decoded, if the answers are the same."""
    questions = make_questions(videos, per_video, options.frames)
    expected, alone = one_at_a_time(VideoQA.from_pretrained("bimba-tiny", "cpu", cache_bytes=0), questions)
    answers, grouped, work = by_video(VideoQA.from_pretrained("bimba-tiny", "cpu"), questions, options.workers)
    if answers != expected:
        print("The engine's answers differ from those of one question at a time: no figures.")
        return False
    mean = len(questions) / len(videos)
    print(
        f"{mean:>9.2f}{1e3 * alone.wall_s / len(questions):>12.1f}{1e3 * grouped.wall_s / len(questions):>9.1f}"
        f"{alone.wall_s / grouped.wall_s:>8.2f}x{alone.processor_s / grouped.processor_s:>11.2f}x"
        f"{alone.processor_s / grouped.processor_s / mean:>7.2f}q{work.decoded / len(videos):>9.2f}"
    )
    return True


def print_wait(root: Path, options: argparse.Namespace) -> None:
    videos = make_videos(root, options.videos, options.frames, size=96)
    questions = make_questions(videos, 1, options.frames)
    _, timing, work = by_video(VideoQA.from_pretrained("bimba-tiny", "cpu"), questions, options.workers)
    wait, encode, answer = (100 * part / timing.wall_s for part in (work.wait_s, work.encode_s, work.answer_s))
    print(f"decode wait, 96 pixels, one question a video, {options.workers} workers: {wait:.1f} % of "
          f"{timing.wall_s:.1f} s (encoding {encode:.0f} %, answering {answer:.0f} %)")  # fmt: skip


def print_decodes_of_ranks(videos: list[str], options: argparse.Namespace) -> None:
    """Of the plugin's dealing; ``tests/lmms_eval_plugin/test_deal.py`` runs the harness with two ranks."""
    about = [question.video for question in make_questions(videos, 8.56, options.frames)]
    for ranks in RANKS:
        owners = Dealer(ranks).deal(list(about))
        dealt = len(set(zip(about, owners))) / len(videos)
        stock = len({(video, i % ranks) for i, video in enumerate(about)}) / len(videos)
        print(f"decodes per video, {ranks} rank(s): {dealt:.2f} (the harness's own dealing: {stock:.2f})")


def answer_with_journal(folder: Path, videos: list[str], frames: int) -> tuple[Work, int]:
    """What the plugin does. Returns the work and how many answers were in the journal."""
    engine, work = VideoQA.from_pretrained("bimba-tiny", "cpu"), Work()
    questions = make_questions(videos, 3, frames)
    with Journal(folder) as journal:
        asked = [{"video": q.video, "prompt": q.prompt, "num_frames": q.num_frames} for q in questions]
        absent = [i for i, what in enumerate(asked) if journal_key(what) not in journal.answers]
        found = len(questions) - len(absent)
        for i, answer in answer_each(engine, [questions[i] for i in absent], work=work):
            if isinstance(answer, Generation):
                journal.add(journal_key(asked[absent[i]]), asked[absent[i]], answer)
    return work, found


def print_resume(root: Path, videos: list[str], frames: int) -> None:
    folder = root / "journal"
    child = subprocess.Popen([sys.executable, __file__, "--journal", str(folder), str(frames), *videos])
    file = folder / "journal-0.jsonl"
    while child.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < KILLED_AFTER):
        time.sleep(0.001)
    child.kill()
    child.wait()
    written = file.read_bytes().count(b"\n")
    work, found = answer_with_journal(folder, videos, frames)
    total = len(make_questions(videos, 3, frames))
    again = max(0, found + work.answered - total) + max(0, written - found)
    print(f"killed with SIGKILL when {written} of {total} answers were written: {found} taken from the journal, "
          f"{work.answered} asked, {again} of them although written")  # fmt: skip


def print_memory() -> None:
    config = BimbaConfig()
    text = config.text_config
    groups, side = query_grid(config.num_frames, config.patch_grid, config.reduction)
    tokens = num_video_tokens(groups, side, side, config.newline_position)
    head_size = text.hidden_size // text.num_attention_heads
    states = 2 * text.num_hidden_layers * text.num_key_value_heads * head_size
    tokens_mib, states_mib = 2 * tokens * text.hidden_size / 2**20, 2 * tokens * states / 2**20
    print(f"7B, {config.num_frames} frames, bfloat16, counted: {tokens} tokens, {tokens_mib:.0f} MiB; "
          f"keys and values {states_mib:.0f} MiB")  # fmt: skip


def print_bound(videos: list[str], frames: int) -> None:
    engine = VideoQA.from_pretrained("bimba-tiny", "cpu")
    one = engine.encode(videos[0], frames).num_bytes
    engine.cache.max_bytes = int(2.5 * one)
    most = 0
    for video in videos:
        engine.encode(video, frames)
        most = max(most, engine.cache.num_bytes)
    print(f"bimba-tiny: {one / 2**20:.1f} MiB a video; limit {2.5 * one / 2**20:.1f} MiB, most held {most / 2**20:.1f}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=256, help="of a video, all of them read (default: %(default)s)")
    parser.add_argument("--size", type=int, default=640, help="pixels (default: %(default)s)")
    parser.add_argument("--questions", type=float, nargs="+", default=[3, 8.56], help="a video (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=WORKERS, help="that decode ahead (default: %(default)s)")
    parser.add_argument("--journal", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.journal:
        folder, frames, *videos = options.journal
        answer_with_journal(Path(folder), videos, int(frames))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        videos = make_videos(root / "large", options.videos, options.frames, options.size)
        print(f"{header()}; {len(videos)} videos of {options.frames} frames, {options.size} pixels")
        print(
            f"{'questions':>9s}{'one by one':>12s}{'engine':>9s}{'wall':>9s}{'processor':>12s}{'':>9s}{'decodes':>9s}"
        )
        if not all(compare(videos, per_video, options) for per_video in options.questions):
            return 1
        print_wait(root / "small", options)
        print_decodes_of_ranks(videos, options)
        print_resume(root, videos, options.frames)
        print_bound(videos, options.frames)
    print_memory()
    return 0


if __name__ == "__main__":
    sys.exit(main())
