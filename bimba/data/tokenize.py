"""Conversations to token ids and labels, in Qwen2's chat format.

::

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n
    <|im_start|>user\\n<video tokens>\\nWho scored?<|im_end|>\\n
    <|im_start|>assistant\\nNumber 7.<|im_end|>\\n

Trained on: what the assistant says, and the ``<|im_end|>`` that stops it. Nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bimba.data.prompt import MEDIUM_TAG, SYSTEM_PROMPT
from bimba.types import BimbaError, SequenceTooLongError

IGNORE_INDEX = -100
VIDEO_TOKEN = "<|video_pad|>"
IMAGE_TOKEN = "<|image_pad|>"

Conversation = Sequence[Mapping[str, str]]  # LLaVA's [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]


class _Ids:
    """Token ids and labels of a conversation as it is being written."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, video_token_counts: Sequence[int]):
        self.tokenizer = tokenizer
        self.video_token_id: int = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)  # type: ignore[assignment]
        self.counts = list(video_token_counts)
        self.input_ids: list[int] = []
        self.labels: list[int] = []

    def add_markup(self, text: str, *, train: bool = False) -> None:
        self._add(self.tokenizer.encode(text, add_special_tokens=False), train)

    def add_text(self, text: str, *, train: bool = False) -> None:
        """Somebody's words: a ``<|im_end|>`` in them is ten characters, not the end of the turn."""
        self._add(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True), train)

    def _add(self, ids: list[int], train: bool) -> None:
        self.input_ids += ids
        self.labels += ids if train else [IGNORE_INDEX] * len(ids)

    def add_with_media(self, text: str) -> None:
        pieces = text.split(MEDIUM_TAG)
        for i, piece in enumerate(pieces):
            if i > 0:
                if not self.counts:
                    raise BimbaError(
                        f"The conversation has more {MEDIUM_TAG} tags than media; give each tag one video."
                    )
                count = self.counts.pop(0)
                self.input_ids += [self.video_token_id] * count
                self.labels += [IGNORE_INDEX] * count
            if piece:
                self.add_text(piece)


def _write(ids: _Ids, conversation: Conversation) -> None:
    ids.add_markup(f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n")
    for turn in conversation:
        match turn.get("from"):
            case "human":
                ids.add_markup("<|im_start|>user\n")
                ids.add_with_media(turn["value"])
                ids.add_markup("<|im_end|>\n")
            case "gpt":
                ids.add_markup("<|im_start|>assistant\n")
                ids.add_text(turn["value"], train=True)
                ids.add_markup("<|im_end|>", train=True)
                ids.add_markup("\n")
            case other:
                raise BimbaError(f"A conversation turn is from {other!r}; expected 'human' or 'gpt'.")


def _check_all_used(ids: _Ids) -> None:
    if ids.counts:
        raise BimbaError(
            f"{len(ids.counts)} media have no {MEDIUM_TAG} tag in the conversation; "
            "put one tag per video into the question."
        )


def tokenize_conversation(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    video_token_counts: Sequence[int],
    max_length: int | None = None,
) -> dict[str, Tensor]:
    """A training sample.

    Args:
        conversation: turns in LLaVA's format; each ``<image>`` tag stands for one medium.
        video_token_counts: how many tokens each medium becomes, in order.
        max_length: the longest sequence that may be made, in tokens.

    Returns:
        ``input_ids`` (L,) int64 and ``labels`` (L,) int64 with -100 where nothing is learned.

    Raises:
        SequenceTooLongError: the sample is longer than ``max_length``. Samples are never cut: a cut could go
            through the video tokens or lose the answer.
        BimbaError: tags and media do not match, or a turn is malformed.
    """
    ids = _Ids(tokenizer, video_token_counts)
    _write(ids, conversation)
    _check_all_used(ids)
    if max_length is not None and len(ids.input_ids) > max_length:
        raise SequenceTooLongError(
            f"The sample is {len(ids.input_ids)} tokens long ({sum(video_token_counts)} of them video); the limit is "
            f"{max_length}. Use fewer frames, more temporal pooling, or raise data.max_length."
        )
    return {"input_ids": torch.tensor(ids.input_ids), "labels": torch.tensor(ids.labels)}


def tokenize_prompt(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, video_token_counts: Sequence[int]
) -> Tensor:
    """The ids (L,) int64 of a conversation whose next words are the assistant's: ready for ``generate``.

    Raises:
        BimbaError: tags and media do not match, or a turn is malformed.
    """
    ids = _Ids(tokenizer, video_token_counts)
    _write(ids, conversation)
    _check_all_used(ids)
    ids.add_markup("<|im_start|>assistant\n")
    return torch.tensor(ids.input_ids)
