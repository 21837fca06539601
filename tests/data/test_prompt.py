"""Prompts are the published ones, byte for byte (golden numbers of the original's ``infer.py``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bimba.data.prompt import SYSTEM_PROMPT, multiple_choice, open_ended, with_medium
from bimba.types import BimbaError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "text" / "prompts.json").read_text())["get_prompt"]
# VSI has a prompt of its own in the original; it is none of the seven benchmarks.
GOOD = [c for c in GOLDEN if "prompt" in c and c["dataset"] in ("VideoMME", "NextQA") and not c["kwargs"]]


def test_there_are_goldens_for_every_number_of_options():
    assert {len(case["sample"]["candidates"]) for case in GOOD} >= {2, 3, 4, 5}


@pytest.mark.parametrize("case", GOOD, ids=lambda case: f"{case['dataset']}-{len(case['sample']['candidates'])}")
def test_multiple_choice_is_the_published_prompt(case):
    options = [candidate.split(". ", 1)[1] for candidate in case["sample"]["candidates"]]
    prompt = multiple_choice(case["sample"]["question"], options)
    asked = with_medium(prompt, newline=False)
    assert case["prompt"] == (
        f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("count", [0, 1, 27])
def test_number_of_options(count):
    with pytest.raises(BimbaError, match=f"Got {count} options.*2 to 26"):
        multiple_choice("Which?", ["x"] * count)


def test_there_are_letters_for_26_options():
    lines = multiple_choice("Which?", ["x"] * 26).splitlines()
    assert "(A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T, U, V, W, X, Y, or Z)" in lines[0]
    assert (lines[2], lines[27]) == ("A. x", "Z. x")


@pytest.mark.parametrize("ask", [open_ended, lambda question: multiple_choice(question, ["a", "b"])])
def test_an_empty_question(ask):
    with pytest.raises(BimbaError, match="question is empty"):
        ask("  \n")


def test_the_medium_comes_first_on_its_own_line_or_not():
    assert with_medium("Which?") == "<image>\nWhich?"
    assert with_medium("Which?", newline=False) == "<image>Which?"
