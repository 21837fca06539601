"""What every compressor is: the base class of the files beside this one."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bimba.types import BimbaError, is_count

NO_GRADIENT: Literal["no gradient"] = "no gradient"
Product = tuple[Tensor | Literal["no gradient"] | None, float]


def check_sizes(**sizes: Any) -> None:
    """Raises ``BimbaError`` for an option, given by its name, that is no whole number of at least 1.

    Zero would not always fail: a scan without states, or attention without channels, trains and adds nothing.
    """
    for name, size in sizes.items():
        if not is_count(size):
            raise BimbaError(f"compressor option {name} must be a whole number of at least 1, received {size!r}.")


class Compressor(nn.Module):
    """Space-time tokens and the queries pooled from them go in, refined queries come out.

    A subclass has ``forward(space_time_tokens, queries, question=None)`` of shapes (B, T, H, W, C), (B, T', Q', C) and
    (B, P, C) -> (B, T', Q', C), begins it with :meth:`check`, and returns the queries' dtype. No sample of a batch may
    see another. Fresh, it should return the queries as they are (``reset_parameters``), so that a training starts from
    the pooled model.

    What training does to a compressor, it does to any: modules in an attribute ``layers`` are compiled each by itself
    where ``model.compile`` asks for it, weights of two dimensions may be Muon's, ``products`` are counted for MFU, all
    weights are whole together where they are dealt out, and a model in parts has a compressor on one device.

    Args:
        hidden_size: C.
        question_conditioned: the embedded question comes with each call, so that what is kept depends on what is asked.
            A subclass that cannot do this does not have the option.

    Attributes:
        fixed_reduction: (frames, rows) per query if a subclass makes sense with one only. Every compressor has the
            option ``reduction`` beside those of its constructor: the model reads it (``BimbaConfig.reduction``).
    """

    fixed_reduction: ClassVar[tuple[int, int] | None] = None

    def __init__(self, hidden_size: int, question_conditioned: bool = False) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.question_conditioned = question_conditioned

    def reset_parameters(self) -> None:
        """Sets every weight to its start; called after transformers has set them its own way."""

    def products(self, grid: tuple[int, int, int], queries: tuple[int, int]) -> Iterator[Product]:
        """What a forward pass on one video multiplies, a question left out: the compressor's share of MFU.

        This is for a subclass that does not say: every matrix at every token and query, and nothing else.

        Args:
            grid: (T, H, W) of the space-time tokens.
            queries: (T', Q').

        Yields:
            (matrix, how many positions it is applied to), or (None, operations) of activations with each other, or
            (``NO_GRADIENT``, operations) of those that the backward pass does not go through.
        """
        positions = prod(grid) + prod(queries)
        yield from ((matrix, positions) for matrix in self.parameters() if matrix.ndim > 1)

    def dtype(self) -> torch.dtype:
        """What a forward pass computes in: the type of the largest weight, as small ones may be wider than the rest."""
        return max(self.parameters(), key=Tensor.numel).dtype

    def check(self, space_time_tokens: Tensor, queries: Tensor, question: Tensor | None = None) -> None:
        """Raises ``BimbaError`` for inputs of wrong shapes, a missing question, and one that nobody reads."""
        C = self.hidden_size
        fits = space_time_tokens.dim() == 5 and queries.dim() == 4 and len(space_time_tokens) == len(queries)
        if not fits or space_time_tokens.shape[-1] != C or queries.shape[-1] != C:
            raise BimbaError(
                f"compressor: expected space-time tokens (B, T, H, W, {C}) and queries (B, T', Q', {C}), "
                f"received {tuple(space_time_tokens.shape)} and {tuple(queries.shape)}."
            )
        if not self.question_conditioned:
            if question is not None:
                raise BimbaError(
                    "compressor: received a question, but was built without question_conditioned=true, which "
                    "its weights would have to be trained with."
                )
            return
        if question is None or question.dim() != 3 or question.shape[1] == 0:
            received = "none" if question is None else tuple(question.shape)
            raise BimbaError(
                f"compressor: question_conditioned=true needs the embedded question, (B, P, {C}) with at least one "
                f"token; received {received}."
            )
        if len(question) != len(queries) or question.shape[-1] != C:
            raise BimbaError(
                f"compressor: expected a question ({len(queries)}, P, {C}), received {tuple(question.shape)}."
            )
