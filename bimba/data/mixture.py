"""Which rows of which annotation files are trained on: LLaVA-NeXT's mixture files.

::

    datasets:
      - json_path: LLaVA-Video-178K/{1_2_m,2_3_m}_youtube_v0_1/*.json     # braces and globs; .json or .jsonl
        sampling_strategy: all                                            # the default
      - json_path: llava_next_738k.json
        sampling_strategy: first:50%                                      # or end:1000, random:10%
        image_folder: pictures                                            # this entry's own; also video_folder

An entry of several files takes its share of each. Shares are rounded up, and ``random`` always draws the same rows.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bimba.types import BimbaError

_RANDOM_SEED = 0  # which rows are drawn must not depend on the seed of a run, or runs could not be compared
_ENTRY_KEYS = {"json_path", "sampling_strategy", "video_folder", "image_folder"}
_STRATEGIES = ("all", "first", "end", "random")
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True)
class Take:
    """Which rows of a file: ``all``, or ``number`` (or ``percent``) of them from its beginning, end, or at random."""

    strategy: str = "all"
    number: int | None = None
    percent: float | None = None

    @classmethod
    def parse(cls, text: Any) -> Take:
        """Reads ``all``, ``first:50%``, ``end:1000``, ``random``, ...

        Raises:
            BimbaError: anything else.
        """
        strategy, colon, amount = str(text).partition(":")
        expected = "expected all, or first, end or random with :N or :N%, such as first:10%"
        if strategy not in _STRATEGIES or (colon and strategy == "all"):
            raise BimbaError(f"sampling_strategy is {text!r}; {expected}.")
        if not colon:
            return cls(strategy)
        try:
            value = float(amount.removesuffix("%")) if amount.endswith("%") else int(amount)
        except ValueError as error:
            raise BimbaError(f"sampling_strategy is {text!r}; {expected}.") from error
        if not 0 < value < math.inf:
            raise BimbaError(f"sampling_strategy is {text!r}; expected more than none.")
        if not amount.endswith("%"):
            return cls(strategy, number=int(value))
        if value > 100:
            raise BimbaError(f"sampling_strategy is {text!r}; expected at most 100 %. To repeat data, list it twice.")
        return cls(strategy, percent=value)

    def rows(self, total: int, position: int = 0) -> np.ndarray:
        """The positions, ascending, of the rows that are taken of ``total``.

        Args:
            position: of the file in its mixture: no two files draw the same random rows.
        """
        count = total
        if self.percent is not None:
            # Rounded first: 7 % of 100 are 7.000000000000001 in floating point, and would be 8.
            count = math.ceil(round(self.percent * total / 100, 6))
        elif self.number is not None:
            count = min(self.number, total)  # as the original: more than there are is all of them
        if self.strategy == "random":
            return np.sort(np.random.default_rng([_RANDOM_SEED, position]).permutation(total)[:count])
        return np.arange(total - count, total) if self.strategy == "end" else np.arange(count)

    def __str__(self) -> str:
        # All digits of a share: two that differ take different rows.
        percent = "" if self.percent is None else f":{self.percent!r}".removesuffix(".0") + "%"
        amount = percent if self.number is None else f":{self.number}"
        return f"{self.strategy}{amount}"


@dataclass(frozen=True)
class Source:
    """One annotation file.

    Attributes:
        path: a .json or .jsonl file.
        take: which of its rows.
        video_folder, image_folder: what its paths are relative to; None: as the mixture says.
    """

    path: Path
    take: Take = Take()
    video_folder: Path | None = None
    image_folder: Path | None = None


@dataclass(frozen=True)
class Mixture:
    """Annotation files, and where their media lie.

    Attributes:
        name: for messages: the file or files it was read from.
        sources: at least one.
        video_root: videos of a source without a folder of its own are at ``video_root/<data_source>/<video>``.
        image_root: images of a source without a folder of its own are at ``image_root/<image>``.
    """

    name: str
    sources: tuple[Source, ...]
    video_root: Path | None = None
    image_root: Path | None = None

    @classmethod
    def of_file(
        cls,
        annotations: str | os.PathLike[str],
        folder: str | os.PathLike[str],
        image_folder: str | os.PathLike[str] | None = None,
    ) -> Mixture:
        """A single annotation file, or several by braces and globs; its paths are relative to ``folder``.

        Raises:
            BimbaError: no such file, or no such folder.
        """
        folders = Path(folder), Path(folder if image_folder is None else image_folder)
        for path in folders:
            if not path.is_dir():
                raise BimbaError(f"{path}: no such folder. Expected the folder that the annotations' paths start from.")
        files = _files(os.fspath(annotations))
        return cls(os.fspath(annotations), tuple(Source(file, Take(), *folders) for file in files))


def read_mixture(
    mixture: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
    video_root: str | os.PathLike[str] | None = None,
    image_root: str | os.PathLike[str] | None = None,
    annotation_root: str | os.PathLike[str] | None = None,
) -> Mixture:
    """A mixture from its YAML file, or from the entries themselves.

    Args:
        video_root, image_root: see :class:`Mixture`; ``image_root`` None: the ``video_root``.
        annotation_root: what relative ``json_path``, ``video_folder`` and ``image_folder`` start from. None: the
            folder of the YAML file; of entries the ``video_root``.

    Raises:
        BimbaError: no such file, not a mixture, or one that names what is not there: all of it is listed.
    """
    name, start = "data.mixture", Path() if video_root is None else Path(video_root)
    if isinstance(mixture, str | os.PathLike):
        name, start = os.fspath(mixture), Path(mixture).parent
        entries = _entries(Path(mixture))
    else:
        entries = mixture
    if annotation_root is not None:
        start = Path(annotation_root)
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise BimbaError(f"{name}: no data sets. Expected 'datasets', a list of entries with 'json_path'.")
    sources: list[Source] = []
    problems: list[str] = []
    for number, entry in enumerate(entries, start=1):
        try:
            sources += _sources(entry, start)
        except BimbaError as error:
            problems.append(f"entry {number}: {error}")
    images = video_root if image_root is None else image_root
    roots = [None if root is None else Path(root) for root in (video_root, images)]
    problems += [f"{root}: no such folder." for root in dict.fromkeys(roots) if root is not None and not root.is_dir()]
    if problems:
        raise BimbaError(f"{name}: {len(problems)} of its parts cannot be used.\n  " + "\n  ".join(problems))
    return Mixture(name, tuple(sources), *roots)


def _entries(path: Path) -> Any:
    if not path.is_file():
        raise BimbaError(f"{path}: no such mixture. Expected a YAML file with 'datasets'.")
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise BimbaError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from error
    return content.get("datasets") if isinstance(content, dict) else None


def _sources(entry: Any, start: Path) -> list[Source]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("json_path"), str):
        raise BimbaError(f"{entry!r} has no 'json_path', the path of a .json or .jsonl file.")
    if unknown := sorted(str(key) for key in set(entry) - _ENTRY_KEYS):
        raise BimbaError(f"nobody reads {', '.join(unknown)}; expected {', '.join(sorted(_ENTRY_KEYS))}.")
    take = Take.parse(entry.get("sampling_strategy", "all"))
    for key in ("video_folder", "image_folder"):
        if not isinstance(entry.get(key), str | None):
            raise BimbaError(f"{key} is {entry[key]!r}; expected the path of a folder.")
    folders = [None if entry.get(key) is None else start / entry[key] for key in ("video_folder", "image_folder")]
    if absent := [str(folder) for folder in folders if folder is not None and not folder.is_dir()]:
        raise BimbaError(f"{', '.join(absent)}: no such folder.")
    return [Source(file, take, *folders) for file in _files(os.fspath(start / entry["json_path"]))]


def _files(pattern: str) -> list[Path]:
    """The annotation files that a path with braces and globs names, in order.

    Raises:
        BimbaError: one of its alternatives names none: all such are listed.
    """
    files: list[Path] = []
    absent = []
    for path in _alternatives(pattern):
        found = [path] if Path(path).is_file() else sorted(glob.glob(path, recursive=True))
        files += map(Path, found)
        absent += [] if found else [path]
    if absent:
        raise BimbaError(f"{', '.join(absent)}: no such annotation file. Expected .json or .jsonl in LLaVA's format.")
    if strange := [str(file) for file in files if file.suffix not in (".json", ".jsonl") or not file.is_file()]:
        raise BimbaError(f"{', '.join(strange)}: expected files that end in .json or .jsonl.")
    return files


def _alternatives(pattern: str) -> list[str]:
    """``a{b,c}d`` to ``abd`` and ``acd``; several braces to all combinations."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    paths = [path for choice in found[1].split(",") for path in _alternatives(f"{head}{choice.strip()}{tail}")]
    return list(dict.fromkeys(paths))  # braces within braces name the same path several times
