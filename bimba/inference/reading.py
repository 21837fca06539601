"""[6] Reading a letter out of an answer in words, forgivingly.

``answer_letter`` is the original's strict reading, by which the published numbers were made: the first word or nothing.
A model that says "The answer is (B)." knows the answer all the same; this reading finds it. It draws nothing by lot:
where no letter is told, several are told in one breath ("A or B"), or one is only denied ("not A"), there is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bimba.data.prompt import LETTERS
from bimba.inference.answer import answer_letter

# A capital that stands alone. Before a small letter I is a word ("I think"), and so is A ("A dog") unless something
# says that a letter follows.
_LETTER = r"(?<![A-Za-z])([A-HJ-Z]|I(?!\s+[a-z]))(?![A-Za-z'\u2019])"
_STANDING = re.compile(rf"(?!A\s+(?!n?or\b|and\b)[a-z]){_LETTER}")
_ANY = rf"\(?{_STANDING.pattern.replace('([', '(?:[', 1)}\)?"  # without a group of its own
_SEVERAL = re.compile(rf"{_ANY}(?:\s*(?:,\s*(?:or|and)?|/|\bor|\band)\s*{_ANY})+")
_DENIED = re.compile(rf"(?i:\b(?:not|neither|nor|never)|n['\u2019]t)\s+(?i:option\s+)?{_ANY}")
# How a letter is pointed out, most explicit first. Of one form the last counts: models think aloud before they answer.
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"(?i:answer|choice|option)(?i:\s+is|\s*:)\W*{_LETTER}",  # The best answer is: (B)
        rf"\(\s*{_LETTER}\s*\)",  # (B)
        rf"^\W*{_LETTER}(?:\W*$|[.):,])",  # **B**, B) because
        rf"(?i:answer|choice|option|letter)\s+{_LETTER}",  # I choose option B
    )
)


def lenient_letter(answer: str, options: Sequence[str]) -> str:
    """The letter that an answer means, upper case; "" if it names none, or several.

    What comes first counts: the strict reading; an answer that is an option's text; a letter that is pointed out, be it
    one of the options' or not; the one option whose text is in the answer; the one letter that stands alone in it.

    Args:
        options: the texts of the options, without their letters; their number says which letters are theirs.
    """
    letters = LETTERS[: len(options)]
    answer = _DENIED.sub("", answer)
    if _SEVERAL.search(answer):  # "Between A and C it is hard to tell. The answer is C." decides all the same
        decided = _FORMS[0].findall(_SEVERAL.sub("", answer))
        return str(decided[-1]) if decided else ""
    if (strict := answer_letter(answer)) and strict in tuple(letters):
        return strict
    plain, texts = _plain(answer), [_plain(option) for option in options]
    if plain and texts.count(plain) == 1:
        return letters[texts.index(plain)]
    if len(plain) == 1 and plain.upper() in LETTERS:
        return plain.upper()
    for form in _FORMS:
        if found := form.findall(answer):
            return str(found[-1])
    said = [letter for letter, text in zip(letters, texts) if text and f" {text} " in f" {plain} "]
    longest = [
        letter
        for letter in said
        if not any(_inside(texts[letters.index(letter)], texts[letters.index(other)]) for other in said)
    ]
    if longest:
        return longest[0] if len(longest) == 1 else ""
    standing = set(_STANDING.findall(answer)) & set(letters)
    return standing.pop() if len(standing) == 1 else ""


def _plain(text: str) -> str:
    """Words in small letters with single spaces between them."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _inside(text: str, other: str) -> bool:
    return text != other and f" {text} " in f" {other} "
