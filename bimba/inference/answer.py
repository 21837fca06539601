"""[6] From the language model's output to an answer: letters, their probabilities, text cut at stop strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bimba.data.prompt import LETTERS, check_number
from bimba.types import BimbaError


@dataclass(frozen=True)
class Choice:
    """The answer to a multiple-choice question: the likeliest letter, and the probability of each, summing to 1.

    ``prompt_tokens`` counts the tokens of the prompt, the video's included.
    """

    letter: str
    probabilities: dict[str, float]
    prompt_tokens: int


@dataclass(frozen=True)
class Generation:
    """A text and what it took: tokens in the prompt (video included) and tokens generated.

    A letter that was chosen, not generated, comes with the ``probabilities`` of all letters and took no new token.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    probabilities: Mapping[str, float] | None = None


def answer_letter(text: str) -> str:
    """The letter that a generated text answers, upper case; other words come back as they are, so they match no letter.

    Strict, as the original scores (``llava/eval/infer.py:25,225``): the first word without its full stop.
    """
    return text.split(" ")[0].rstrip(".").strip().upper()


def letter_token_ids(tokenizer: PreTrainedTokenizerBase, num_options: int) -> dict[str, int]:
    """The token that says each letter at the start of an answer.

    Raises:
        BimbaError: too few or too many options, or the tokenizer writes a letter with more than one token, so no single
            logit stands for it.
    """
    check_number(num_options)
    ids = {letter: tokenizer.encode(letter, add_special_tokens=False) for letter in LETTERS[:num_options]}
    for letter, tokens in ids.items():
        if len(tokens) != 1:
            raise BimbaError(f"The tokenizer writes the letter {letter} as {len(tokens)} tokens; expected one each.")
    return {letter: tokens[0] for letter, tokens in ids.items()}


def choice_from_logits(logits: Tensor, letter_ids: dict[str, int], prompt_tokens: int) -> Choice:
    """The choice among letters.

    Args:
        logits: (vocabulary,) at the position where the answer begins.
        letter_ids: token of each letter.
        prompt_tokens: how many tokens stand before it.
    """
    of_letters = logits[list(letter_ids.values())].double()
    probabilities = dict(zip(letter_ids, torch.softmax(of_letters, dim=0).tolist()))
    return Choice(max(probabilities, key=lambda letter: probabilities[letter]), probabilities, prompt_tokens)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first of the stop strings; an empty stop string is ignored."""
    ends = [text.find(stop) for stop in stops if stop and stop in text]
    return text[: min(ends)] if ends else text
