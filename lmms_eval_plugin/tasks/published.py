"""What the tasks of the published numbers share: the harness's own module of a benchmark, two readings of an answer.

The tasks take data, video lookup and scoring from the harness, and the prompt, the number of frames and the generation
settings from the original (``_published_defaults``). ``strict_accuracy``, by which the published numbers were made, and
``lenient_accuracy`` stand beside the harness's own metric; what could not be read is counted.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from bimba.data.prompt import LETTERS, bare_options, multiple_choice_lines
from bimba.inference.answer import answer_letter
from bimba.inference.reading import lenient_letter
from bimba.types import BimbaError

Score = Callable[[dict[str, Any], list[str]], Mapping[str, Any]]


@dataclass(frozen=True)
class Asked:
    """What a document of any benchmark asks.

    Attributes:
        lines: the options as they are asked, "A. ...".
        right: the letter of the right one; None: only others know it.
        identity: what no other document of the benchmark should have.
    """

    question: str
    lines: Sequence[str]
    right: str | None
    identity: Hashable

    @property
    def letters(self) -> list[str]:
        return list(LETTERS[: len(self.lines)])

    @property
    def prompt(self) -> str:
        """The published one."""
        return multiple_choice_lines(self.question, self.lines)


def lettered(options: Sequence[str]) -> list[str]:
    """Bare option texts with their letters before them; there are 26."""
    return [f"{LETTERS[i : i + 1] or '?'}. {option}" for i, option in enumerate(options)]


def letter_at(index: Any) -> str:
    """The letter of an option's number, counted from 0, in whatever form a data set has it; "" if that is none."""
    try:
        number = int(index)
    except (TypeError, ValueError):
        return ""
    return LETTERS[number] if 0 <= number < len(LETTERS) else ""


def stock_utils(benchmark: str) -> ModuleType:
    """``lmms_eval.tasks.<benchmark>.utils``, which fixes the folder of the videos when it is imported.

    Raises:
        BimbaError: HF_HOME is not set or not absolute. Half of those modules would then look for videos under the
            current folder, in a folder named "~", or stop with a KeyError.
    """
    home = os.environ.get("HF_HOME", "")
    if not os.path.isabs(home):
        state = f"is {home!r}, which is not absolute" if home else "is not set"
        raise BimbaError(
            f"HF_HOME {state}; the harness looks for the videos of {benchmark} there. Set it to the absolute path of "
            "the folder that holds them, for example `export HF_HOME=$HOME/.cache/huggingface`."
        )
    return importlib.import_module(f"lmms_eval.tasks.{benchmark}.utils")


def strict(answer: str, letter: str | None) -> float:
    """1.0 if the first word of ``answer`` is the letter and nothing else; 0.0 if not, or if there is no letter."""
    return float(bool(letter) and answer_letter(answer) == letter)


def readings(answer: str, asked: Asked) -> dict[str, float]:
    """Both readings of an answer, and what they could not read; each is 0 or 1.

    ``no_letter``: the answer names no letter, also to the lenient reading. ``outside_options``: it names one that no
    option has. ``no_reference``: the data set's own answer is no letter of an option; such a document counts as wrong.
    """
    letter = lenient_letter(answer, bare_options(asked.lines))
    right = asked.right if asked.right in asked.letters else None
    return {
        "strict_accuracy": strict(answer, right),
        "lenient_accuracy": float(right is not None and letter == right),
        "no_letter": float(not letter),
        "outside_options": float(bool(letter) and letter not in asked.letters),
        "no_reference": float(right is None),
    }


def scores(doc: dict[str, Any], results: list[str], asked: Asked, stock: Score) -> dict[str, Any]:
    """Our readings and the harness's scores of an answer; the latter cannot be asked about a document without one."""
    own = readings(results[0], asked)
    return {**own, **({} if own["no_reference"] else stock(doc, results))}


def count(results: Sequence[float]) -> int:
    """How many documents; an aggregation of the harness."""
    return int(sum(results))
