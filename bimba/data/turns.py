"""Conversations changed turn by turn before they are tokenized."""

from __future__ import annotations

import numpy as np

from bimba.data.prompt import MEDIUM_TAG, time_instruction
from bimba.data.tokenize import Conversation


def with_time_instruction(conversation: Conversation, duration_s: float, times_s: np.ndarray) -> Conversation:
    """The conversation with one more time instruction in front of its first turn, word for word the original's.

    There is no space before "Please" and a blank line before the question: of ``<image>\\n`` only the tag moves up.
    """
    first, *others = conversation
    question = first["value"].replace(MEDIUM_TAG, "")
    instruction = f"{time_instruction(duration_s, times_s)}Please answer the following questions related to this video."
    return [{**first, "value": f"{MEDIUM_TAG}\n{instruction}\n{question}"}, *others]


def without_last_question(turns: Conversation) -> Conversation | None:
    """The turns before the last question; None where that is the first, or a medium would go with it."""
    questions = [i for i, turn in enumerate(turns) if turn["from"] == "human"]
    if len(questions) < 2:
        return None
    kept, dropped = turns[: questions[-1]], turns[questions[-1] :]
    if any(MEDIUM_TAG in turn["value"] for turn in dropped) or all(turn["from"] != "gpt" for turn in kept):
        return None
    return kept
