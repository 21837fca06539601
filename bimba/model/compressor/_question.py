"""The question leads the sequence: a scan has read it before it comes to the first token of the video."""

from __future__ import annotations

import logging
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)


@cache
def warn_of_one_layer() -> None:
    """Logs, once in a process, what a question cannot do to a compressor of one layer.

    What a token adds to a query depends on these two, and neither has read the question before the only layer: it adds
    to the query by itself, and attention divides by a larger sum.
    """
    log.warning(
        "The compressor has question_conditioned=true and num_layers=1: the question adds to what the queries hold, "
        "but which tokens of the video are selected is the same for every question. Use "
        "model.compressor.num_layers=2 to have it depend on the question (docs/compressors.md)."
    )


class Led(NamedTuple):
    """A sequence with the question around it.

    Attributes:
        tokens: (B, before + S + after, C).
        before, after: how many positions the question takes at either end; no output is ever read there.
    """

    tokens: Tensor
    before: int
    after: int

    def strip(self, tokens: Tensor) -> Tensor:
        """(B, before + S + after, C) -> (B, S, C): the sequence without the question."""
        return tokens[:, self.before : tokens.shape[1] - self.after]


def lead(tokens: Tensor, question: Tensor | None, both_ends: bool) -> Led:
    """Puts the question in front of the sequence, and for a scan that starts at the last token behind it too.

    Queries stand ``before`` positions further right than without. The backward scan reads the question as it reads the
    video, from its last token to its first.

    Args:
        tokens: (B, S, C).
        question: (B, P, C), any dtype; None: the sequence as it is.
        both_ends: some scan starts at the last token.
    """
    if question is None:
        return Led(tokens, 0, 0)
    question = question.to(tokens.dtype)
    length = question.shape[1]
    if both_ends:
        return Led(torch.cat([question, tokens, question], dim=1), length, length)
    return Led(torch.cat([question, tokens], dim=1), length, 0)
