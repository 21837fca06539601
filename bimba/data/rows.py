"""Annotation files in LLaVA's format: their rows, and what is wrong with a row.

A row is ``{"id": ..., "video": path, "conversations": [{"from": "human", "value": "<image>\\nWho scored?"},
{"from": "gpt", "value": "Number 7."}]}``. Instead of ``video`` it may have ``image``; either may be a list of paths.
A conversation about nothing seen has neither. Each medium has one ``<image>`` tag, in order. ``data_source`` says where
the row comes from; other keys are kept aside.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bimba.data.prompt import MEDIUM_TAG

VIDEO, IMAGE, TEXT = "video", "image", "text"
_SPEAKERS = ("human", "gpt", "system")


class BrokenFile(Exception):
    """A part of a file that holds no row: where, and why."""

    def __init__(self, where: str, why: str):
        super().__init__(f"{where}: {why}")
        self.where, self.why = where, why


def rows_of(path: Path) -> Iterator[tuple[int, Any]]:
    """The number of each row (in a list counted from 0, in a ``.jsonl`` file its line, from 1), and the row.

    A line that is not JSON is handed out as a :class:`BrokenFile`, and the next line follows.

    Raises:
        BrokenFile: the file as a whole cannot be read.
    """
    try:
        if path.suffix == ".jsonl":
            yield from _lines(path)
            return
        text = path.read_bytes()
    except OSError as error:
        raise BrokenFile(str(path), f"cannot be read ({error.strerror}). Check its permissions.") from error
    try:
        rows = json.loads(text)
    except ValueError as error:  # of JSON, or of the encoding
        raise BrokenFile(str(path), _not_json(error)) from error
    if not isinstance(rows, list):
        why = f"holds a JSON {type(rows).__name__}. Expected a list of rows, or a .jsonl file."
        raise BrokenFile(str(path), why)
    yield from enumerate(rows)


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except ValueError as error:
                yield number, BrokenFile(place(path, number), _not_json(error))


def _not_json(error: ValueError) -> str:
    return f"not valid JSON ({error}). Repair the file or fetch it again."


def place(path: Path, number: int) -> str:
    """Where a row stands, in words."""
    return f"{path}, {kind_of_number(path)} {number}"


def kind_of_number(path: Path) -> str:
    """What the numbers of :func:`rows_of` count."""
    return "line" if path.suffix == ".jsonl" else "row"


def media_of(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What a sound row is about: ``VIDEO``, ``IMAGE`` or ``TEXT``, and the paths as they are written."""
    for kind in (VIDEO, IMAGE):
        value = row.get(kind)
        if value is not None:
            return kind, [value] if isinstance(value, str) else list(value)
    return TEXT, []


def escapes(path: str) -> bool:
    """Whether a path leads out of the folder that it is relative to, as far as its words say."""
    normal = posixpath.normpath(path)
    return path.startswith("/") or normal == ".." or normal.startswith("../")


def problem_of(row: Any, literal_tags: bool = False) -> str | None:
    """What is wrong with a row, and what was expected; None: nothing.

    Args:
        literal_tags: ``<image>`` is just words in a conversation without a medium (``Recipe.literal_tags``).
    """
    if not isinstance(row, dict):
        return f"{type(row).__name__} instead of an object with 'video' or 'image' and 'conversations'."
    return (
        _problem_of_turns(row.get("conversations"))
        or _problem_of_media(row)
        or _problem_of_tags(row, literal_tags)
        or _problem_of_letters(row)
    )


def _problem_of_turns(turns: Any) -> str | None:
    if not isinstance(turns, list) or not turns:
        return "'conversations' is missing or empty. Expected a list of turns."
    for turn in turns:
        if not (isinstance(turn, dict) and turn.get("from") in _SPEAKERS and isinstance(turn.get("value"), str)):
            return f"a turn is {turn!r}. Expected {{'from': 'human' or 'gpt', 'value': text}}."
    answers = [turn["value"] for turn in turns if turn["from"] == "gpt"]
    if not answers:
        return "no turn from 'gpt', so there is no answer to learn. Add one or drop the row."
    if not any(answer.strip() for answer in answers):
        return "every turn from 'gpt' is empty, so there is no answer to learn. Fill one in or drop the row."
    return None


def _problem_of_media(row: Mapping[str, Any]) -> str | None:
    if row.get(VIDEO) is not None and row.get(IMAGE) is not None:
        return "both 'video' and 'image', so it is open which tag is which. Give one of the two, a path or a list."
    for kind in (VIDEO, IMAGE):
        value = row.get(kind)
        if value is None:
            continue
        paths = value if isinstance(value, list) else [value]
        if not paths or not all(isinstance(path, str) and path and "\0" not in path for path in paths):
            return f"{kind!r} is {value!r}. Expected a path relative to the {kind} folder, or a list of them."
        if out := [path for path in paths if escapes(path)]:
            return f"{kind!r} is {out[0]!r}, which leads out of the {kind} folder. Expected a path below it."
    source = row.get("data_source")
    if source is not None and (not isinstance(source, str) or escapes(source)):
        return f"'data_source' is {source!r}. Expected the name of a data set, a folder below the video root."
    return None


def _problem_of_tags(row: Mapping[str, Any], literal_tags: bool) -> str | None:
    kind, paths = media_of(row)
    if kind == TEXT and literal_tags:
        return None
    turns = row["conversations"]
    asked = sum(turn["value"].count(MEDIUM_TAG) for turn in turns if turn["from"] == "human")
    elsewhere = any(MEDIUM_TAG in turn["value"] for turn in turns if turn["from"] != "human")
    if asked == len(paths) and not (elsewhere and paths):
        return None
    media = f"one {kind}" if len(paths) == 1 else f"{len(paths)} {kind}s"
    if not paths:
        return (
            f"{asked} {MEDIUM_TAG} tags in the human turns, and neither 'video' nor 'image'. Expected one of the two."
        )
    return (
        f"{asked} {MEDIUM_TAG} tags in the human turns, for {media}. "
        "Put one there for each, where it belongs, and none in the answers."
    )


def _problem_of_letters(row: Mapping[str, Any]) -> str | None:
    """JSON can spell halves of letters, ``\\ud800``, which no tokenizer, file system or terminal takes."""
    texts = [turn["value"] for turn in row["conversations"]]
    for text in (*texts, *media_of(row)[1], row.get("data_source"), row.get("id")):
        try:
            str(text).encode()
        except UnicodeEncodeError as error:
            half, around = error.object[error.start], error.object[max(0, error.start - 10) : error.end]
            return f"{half!r} in {around!r} is half of a letter (an unpaired surrogate). Repair or drop the row."
    return None
