"""What is wrong with training data, found before a GPU waits for it: rows, files, unreadable videos, lengths."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bimba.data.dataset import VideoQADataset
from bimba.data.media import read_image, read_video
from bimba.data.rows import VIDEO
from bimba.types import BimbaError, ImageReadError, ShortVideoError, VideoDecodeError

_FRAMES = 3  # read of each video: its first, its middle, its last
_SEED = 0  # of which samples and media are looked at
_AHEAD = 64  # media per thread that are known of in advance: a list of millions would be memory
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Trouble:
    """One thing that is wrong.

    Attributes:
        kind: "annotations", "duplicate id", "missing", "unreadable", or "too long".
        what: where, and why.
    """

    kind: str
    what: str


@dataclass
class Findings:
    """What a check has found.

    Attributes:
        name: of the mixture.
        files: annotation files, and how many of their rows are taken.
        sources: per source, rows, questions and media.
        modalities: rows of each.
        num_media: different media that rows name; ``num_read`` of them were decoded.
        troubles: what is wrong; those of ``num_troubles`` that are kept in words.
        num_troubles: of each kind.
        lengths: tokens of the samples that were tokenised, and of how many samples they are.
        max_length: the limit they are held against.
        tokenizer: whose tokens are counted.
    """

    name: str
    files: dict[str, int] = field(default_factory=dict)
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    modalities: Counter[str] = field(default_factory=Counter)
    num_media: int = 0
    num_read: int = 0
    troubles: list[Trouble] = field(default_factory=list)
    num_troubles: Counter[str] = field(default_factory=Counter)
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    max_length: int = 0
    tokenizer: str = ""

    @property
    def num_rows(self) -> int:
        return sum(self.modalities.values())

    def add(self, kind: str, what: Iterable[str], more: int = 0) -> None:
        found = [Trouble(kind, one) for one in what]
        self.troubles += found
        if found:
            self.num_troubles[kind] += len(found) + more


def check_data(
    dataset: VideoQADataset,
    sample: int | None = 200,
    workers: int = 4,
    tokenizer: str = "",
    say: Callable[..., Any] = print,
) -> Findings:
    """Looks at everything that a data set names.

    Every row is checked, and that every file it names is there. Of ``sample`` media (None: of all) a few frames are
    decoded, and as many samples are tokenised.

    Args:
        dataset: opened with ``skip_bad_rows`` and ``allow_duplicate_ids``, so that it could be opened at all.
        workers: threads that look at media.
        tokenizer: its name, for the report.
        say: is told what is going on.
    """
    index, mixture = dataset.index, dataset.mixture
    found = Findings(mixture.name, max_length=dataset.max_length, tokenizer=tokenizer)
    found.add("annotations", (p.text(mixture) for p in index.problems), index.num_problems - len(index.problems))
    found.add("duplicate id", (p.text(mixture) for p in index.duplicates), index.num_duplicates - len(index.duplicates))
    taken = np.bincount(index.column("file"), minlength=len(mixture.sources))
    for number, source in zip(taken.tolist(), mixture.sources):
        found.files[str(source.path)] = found.files.get(str(source.path), 0) + number

    say(f"Reading {len(index)} rows")
    media: dict[Path, tuple[str, int]] = {}  # of what kind, and the first row that names it
    for i in range(len(index)):
        kind, paths = dataset.media_paths(i)
        for path in paths:
            media.setdefault(path, (kind, i))
        of_source = found.sources.setdefault(index.source(i), Counter())
        questions = sum(turn["from"] == "human" for turn in dataset.row(i)["conversations"])
        of_source.update(rows=1, questions=questions, media=len(paths))
        found.modalities[index.modality(i)] += 1
    found.num_media = len(media)

    say(f"Looking for {len(media)} media")
    with ThreadPoolExecutor(workers) as pool:
        there = _shown(_map(pool, dataset.is_there, list(media), workers), len(media))
        absent = dict.fromkeys(path for path, exists in zip(media, there) if not exists)
        found.add(
            "missing", (f"{dataset.where(media[path][1])}: there is no {path}" for path in media if path in absent)
        )
        looked_at = _some([path for path in media if path not in absent], sample)
        say(f"Decoding frames of {len(looked_at)} media")
        errors = _shown(
            _map(pool, lambda path: _decode(path, media[path][0], dataset), looked_at, workers), len(looked_at)
        )
        wrong = [f"{dataset.where(media[path][1])}: {error}" for path, error in zip(looked_at, errors) if error]
        found.add("unreadable", wrong)
    found.num_read = len(looked_at)

    measured = _some(range(len(index)), sample)
    say(f"Tokenising {len(measured)} samples")
    lengths = [(i, dataset.count_tokens(i)) for i in _shown(measured, len(measured))]
    found.lengths = np.array([length for _, length in lengths if length is not None], dtype=np.int64)
    found.add(
        "too long",
        (
            f"{dataset.where(i)}: {length} tokens; the limit is {dataset.max_length} (data.max_length)"
            for i, length in lengths
            if length is not None and length > dataset.max_length
        ),
    )
    return found


def _some(items: Sequence[Item], number: int | None) -> list[Item]:
    """So many of them, drawn at random and in their order; None: all."""
    if number is None or number >= len(items):
        return list(items)
    return [items[i] for i in sorted(random.Random(_SEED).sample(range(len(items)), number))]


def _shown(items: Iterable[Item], total: int) -> Iterable[Item]:
    """The items, with a progress bar on a terminal: all of a large data set take hours."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, "", total, console=console, transient=True, disable=not console.is_terminal)


def _map(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """``pool.map`` that does not hand in everything at once."""
    remaining = iter(items)
    while batch := list(islice(remaining, workers * _AHEAD)):
        yield from pool.map(function, batch)


def _decode(path: Path, kind: str, dataset: VideoQADataset) -> str | None:
    """Why a video or an image cannot be trained on; None: it can."""
    try:
        if kind == VIDEO:
            with dataset.at_hand(path, kind) as file:
                frames = read_video(file, _FRAMES, "repeat")
            if frames.num_total < dataset.num_frames and dataset.short_videos == "error":
                raise ShortVideoError(f"{path}: {frames.num_total} frames, and {dataset.num_frames} are read of each")
        else:
            with dataset.at_hand(path, kind) as file:
                read_image(file)
    except (VideoDecodeError, ImageReadError) as error:
        return str(error)
    except BimbaError as error:
        return f"{path}: {error}"
    return None
