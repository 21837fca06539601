"""The loss of the supervised tokens, without the logits of all of them in memory.

A row of logits is one number per word of the vocabulary: 13,440 tokens of the 7B model would be 8 GB in float32, and
several times that with their gradient. Here they exist for ``CHUNK`` tokens at a time, and are computed again for the
backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bimba.data.tokenize import IGNORE_INDEX

CHUNK = 512


class Scores(NamedTuple):
    """Of the N supervised tokens of a batch, in reading order (a tuple, so that FSDP finds the tensors in it).

    Attributes:
        losses: (N,) float32, minus the log probability of each.
        right: (N,) bool, whether it is the likeliest.
        samples: (N,) int64, which sample of the batch it belongs to.
    """

    losses: Tensor
    right: Tensor
    samples: Tensor


def score(hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], chunk: int = CHUNK) -> Scores:
    """How well each supervised token is predicted by the position before it.

    Args:
        hidden: (B, L, C), what the language model's head reads.
        labels: (B, L) int64, -100 = not trained on.
        head: (N, C) -> (N, vocabulary).
        chunk: how many tokens have their logits in memory at a time.
    """
    wanted = labels[:, 1:] != IGNORE_INDEX  # (B, L - 1)
    tokens = labels[:, 1:][wanted]  # (N,)
    states = hidden[:, :-1][wanted]  # (N, C)
    if len(tokens) <= chunk:
        parts = [_score(states, tokens, head)]
    else:
        parts = [
            checkpoint(_score, some, those, head, use_reentrant=False)
            for some, those in zip(states.split(chunk), tokens.split(chunk), strict=True)
        ]
    losses, right = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return Scores(losses, right, wanted.nonzero()[:, 0])


class ValidationSums(NamedTuple):
    """Sums over tokens (``loss``, ``right``, ``tokens``) and over samples (``exact_answers``, ``samples``)."""

    loss: float
    right: float
    tokens: float
    exact_answers: float
    samples: float


def validation_sums(scores: Scores, num_samples: int) -> Tensor:
    """The numbers of a ``ValidationSums`` for one batch, (5,) float64; they add up over batches."""
    exact = torch.ones(num_samples, device=scores.losses.device)
    exact[scores.samples[~scores.right]] = 0.0
    sums = (scores.losses.double().sum(), scores.right.sum(), len(scores.losses), exact.sum(), num_samples)
    return torch.stack([torch.as_tensor(one, dtype=torch.float64, device=scores.losses.device) for one in sums])


def _score(states: Tensor, tokens: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    logits = head(states).float()  # (N, vocabulary)
    return F.cross_entropy(logits, tokens, reduction="none"), logits.detach().argmax(dim=-1) == tokens
