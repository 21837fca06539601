"""Prompt strings: the one place where the words around a question are written.

The needle data and tasks, ``VideoQA`` and ``bimba ask`` call these functions, so they ask a model in the words it was
trained with. Annotations in LLaVA's format and other tasks of lmms-eval bring words of their own; of theirs only what
stands between the medium and the words comes from here. The multiple-choice text is the one the published BIMBA numbers
were made with (``llava/eval/infer.py:60-97`` of the original).
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence

from bimba.types import BimbaError

SYSTEM_PROMPT = "You are a helpful assistant."
MEDIUM_TAG = "<image>"  # LLaVA's placeholder for a video or an image in a conversation
LETTERS = string.ascii_uppercase


def multiple_choice(question: str, options: Sequence[str]) -> str:
    """The published multiple-choice prompt, without the medium tag.

    Args:
        question: the question, one or more lines.
        options: 2 to 26 option texts *without* their letters.

    Raises:
        BimbaError: for any other number of options, or an empty question.
    """
    check_number(len(options))
    return multiple_choice_lines(question, [f"{letter}. {option}" for letter, option in zip(LETTERS, options)])


def multiple_choice_lines(question: str, lines: Sequence[str]) -> str:
    """The same prompt for a data set whose options bring their letters: the lines stay as they are, byte for byte.

    Args:
        lines: 2 to 26 options such as "A. Apples.".

    Raises:
        BimbaError: for any other number of options, or an empty question.
    """
    if not question.strip():
        raise BimbaError("The question is empty; give the text of a question.")
    check_number(len(lines))
    return (
        "Select the best answer to the following multiple-choice question based on the video. "
        f"Respond with only the letter {_letter_list(len(lines))} of the correct option.\n"
        + "\n".join([question, *lines])
        + "\nThe best answer is:"
    )


def check_number(num_options: int) -> None:
    """Whether a question may have so many options.

    Raises:
        BimbaError: there is nothing to choose, or not a letter for each.
    """
    if not 2 <= num_options <= len(LETTERS):
        raise BimbaError(f"Got {num_options} options; a multiple-choice question takes 2 to {len(LETTERS)}.")


def bare_options(options: Sequence[str]) -> list[str]:
    """Option texts without their letters. Letters are taken off only if all options carry theirs, in order."""
    lettered = [re.match(rf"\(?{letter}[.):]\s*", option) for letter, option in zip(LETTERS, options)]
    if len(options) > len(LETTERS) or not all(lettered):
        return list(options)
    return [option[match.end() :] for match, option in zip(lettered, options) if match is not None]


def check_options(options: Sequence[str]) -> None:
    """Whether a question may have these options.

    Args:
        options: option texts, with or without their letters.

    Raises:
        BimbaError: too few or too many, an empty one, or two that are the same.
    """
    check_number(len(options))
    texts = bare_options(options)
    if not all(text.strip() for text in texts):
        raise BimbaError(f"One of the options {list(options)} is empty; give a text for each.")
    if twice := sorted({text for text in texts if texts.count(text) > 1}):
        raise BimbaError(f"The option {twice[0]!r} is there more than once in {list(options)}; give each once.")


def _letter_list(number: int) -> str:
    """The Oxford comma at five options, and its absence below, are the original's; it never asks about more."""
    comma = "," if number > 4 else ""
    return f"({', '.join(LETTERS[: number - 1])}{comma} or {LETTERS[number - 1]})"


def open_ended(question: str) -> str:
    """A question that wants a short free answer, without the medium tag.

    Raises:
        BimbaError: for an empty question.
    """
    if not question.strip():
        raise BimbaError("The question is empty; give the text of a question.")
    return f"{question}\nAnswer the question using a single word or phrase."


def time_instruction(duration_s: float, times_s: Iterable[float]) -> str:
    """The sentences that tell the original which moments of a video it sees; its evaluation scripts leave them out."""
    times = [f"{time_s:.2f}s" for time_s in times_s]
    return (
        f"The video lasts for {duration_s:.2f} seconds, and {len(times)} frames are uniformly sampled from it. "
        f"These frames are located at {','.join(times)}."
    )


def with_medium(prompt: str, newline: bool = True) -> str:
    """Puts the medium tag before the prompt.

    Args:
        newline: the tag stands on a line of its own, as in LLaVA-Video-178K. The original trains so, but its evaluation
            asks without; which of the two a checkpoint wants is its ``BimbaConfig.newline_after_medium``.
    """
    separator = "\n" if newline else ""
    return f"{MEDIUM_TAG}{separator}{prompt}"
