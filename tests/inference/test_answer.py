from __future__ import annotations

import pytest
import torch
from tiny_checkpoint import ascii_tokenizer

from bimba.data.prompt import bare_options
from bimba.inference.answer import answer_letter, choice_from_logits, cut_at, letter_token_ids
from bimba.types import BimbaError


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("b", "B"),
        ("C. because", "C"),
        ("", ""),
        ("The answer is B.", "THE"),
        ("Apples", "APPLES"),
    ],
)
def test_answer_letter_is_as_strict_as_the_original(text, letter):
    assert answer_letter(text) == letter


@pytest.mark.parametrize(
    ("options", "bare"),
    [
        (["A. red", "B. blue"], ["red", "blue"]),
        (["(A) red", "(B) blue"], ["red", "blue"]),
        (["red", "blue"], ["red", "blue"]),
        (["A. Smith", "C. Jones"], ["A. Smith", "C. Jones"]),  # names, not letters in order
        (["A. red", "blue"], ["A. red", "blue"]),
    ],
)
def test_letters_are_taken_off_only_if_all_options_carry_theirs(options, bare):
    assert bare_options(options) == bare


def test_probabilities_are_among_the_letters_only():
    logits = torch.full((10,), 100.0)
    logits[2], logits[5] = 1.0, 1.0 + torch.log(torch.tensor(3.0))
    choice = choice_from_logits(logits, {"A": 2, "B": 5}, prompt_tokens=7)
    assert (choice.letter, choice.prompt_tokens) == ("B", 7)
    assert choice.probabilities == pytest.approx({"A": 0.25, "B": 0.75})


def test_a_letter_of_several_tokens_is_refused():
    tokenizer = ascii_tokenizer()
    assert list(letter_token_ids(tokenizer, 3)) == ["A", "B", "C"]
    tokenizer.encode = lambda text, add_special_tokens: [1, 2]
    with pytest.raises(BimbaError, match="A as 2 tokens"):
        letter_token_ids(tokenizer, 2)


@pytest.mark.parametrize(
    ("text", "stops", "cut"),
    [
        ("a\n\nb", ["\n\n"], "a"),
        ("abc", [], "abc"),
        ("abc", [""], "abc"),
        ("abcd", ["d", "c"], "ab"),
        ("abc", ["x"], "abc"),
    ],
)
def test_text_is_cut_at_the_first_stop(text, stops, cut):
    assert cut_at(text, stops) == cut
