from __future__ import annotations

import pytest

from bimba.inference.reading import lenient_letter

OPTIONS = ["A red car.", "The dog", "The big dog", "Nobody"]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),  # what the strict reading takes
        ("c.", "C"),
        ("D. because", "D"),
        ("(B)", "B"),
        ("(b)", "B"),
        ("**B**", "B"),
        ("B) The dog", "B"),
        ("B: The dog", "B"),
        ("B.\nIt barks.", "B"),
        ("The answer is B", "B"),
        ("The best answer is: (C).", "C"),
        ("The correct option is **D**, as nobody is there.", "D"),
        ("Answer: C", "C"),
        ("The answer is A because of the car", "A"),
        ("Not (A) but (B)", "B"),
        ("Option A is wrong, so the answer is C.", "C"),
        ("I would go with option D", "D"),
        ("I think it is C", "C"),
        ("a red car", "A"),  # the strict reading takes the first word here, too
        ("red", ""),
        ("Nobody.", "D"),
        ("The dog", "B"),
        ("the  DOG!", "B"),
        ("It is the big dog.", "C"),  # and not option B, whose text is in it
        ("It is the dog, nobody else", ""),
        ("It is A or C", ""),
        ("B or C", ""),
        ("A, B and C", ""),
        ("A, B, or C", ""),
        ("A/B", ""),
        ("Either (A) or (C)", ""),
        ("The answer is A or B.", ""),
        ("Between A and C it is hard to tell. The answer is C.", "C"),
        ("B, a dog", "B"),
        ("C, A dog is there", "C"),
        ("The answer is not A.", ""),
        ("It is not A", ""),
        ("It isn't (A)", ""),
        ("Neither A nor B", ""),
        ("It is not option A, it is option B", "B"),
        ("It shows A cat", ""),
        ("I don't know", ""),
        ("Both of them", ""),
        ("Apples", ""),
        ("", ""),
        (" .", ""),
    ],
)
def test_which_letter_an_answer_means(answer, letter):
    assert lenient_letter(answer, OPTIONS) == letter


@pytest.mark.parametrize("answer", ["E", "e", "(E)", "The answer is E.", "E. none of these"])
def test_a_letter_that_no_option_has_is_still_a_letter(answer):
    assert lenient_letter(answer, OPTIONS) == "E"
    assert lenient_letter(answer, [*OPTIONS, "None"]) == "E"


def test_options_alike_are_told_apart_by_letters_alone():
    assert lenient_letter("red", ["red", "red", "blue"]) == ""
    assert lenient_letter("It is red", ["red", "red", "blue"]) == ""
    assert lenient_letter("(B) red", ["red", "red", "blue"]) == "B"
