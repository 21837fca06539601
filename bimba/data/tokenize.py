"""Conversations to token ids and labels, in Qwen2's chat format.

::

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n
    <|im_start|>user\\n<video tokens>\\nWho scored?<|im_end|>\\n
    <|im_start|>assistant\\nNumber 7.<|im_end|>\\n

Trained on: what the assistant says, and the ``<|im_end|>`` that stops it. Nothing else. That is the recipe ``default``;
``original`` differs in what :mod:`bimba.data.recipe` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bimba.data.prompt import MEDIUM_TAG, SYSTEM_PROMPT
from bimba.data.recipe import DEFAULT, Recipe
from bimba.types import BimbaError, SequenceTooLongError

IGNORE_INDEX = -100
VIDEO_TOKEN = "<|video_pad|>"
IMAGE_TOKEN = "<|image_pad|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

NOISE_MARKER = "QA_GT_caption_based_noisy"
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}

# LLaVA's [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}], or with "role" and "content" as in chats.
Conversation = Sequence[Mapping[str, str]]
Turn = tuple[str, str]  # who speaks (user, assistant, system), and the words


class _Ids:
    """Token ids and labels of a conversation as it is being written."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, medium_token_counts: Sequence[int], medium_token: str = VIDEO_TOKEN
    ):
        self.tokenizer = tokenizer
        self.medium_token_id: int = tokenizer.convert_tokens_to_ids(medium_token)  # type: ignore[assignment]
        if medium_token_counts and self.medium_token_id in (None, tokenizer.unk_token_id):
            raise BimbaError(
                f"The tokenizer has no {medium_token}, which stands for a video or an image; add it as a special token."
            )
        self.counts = list(medium_token_counts)
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

    def add_medium(self) -> None:
        if not self.counts:
            raise BimbaError(
                f"The conversation has more {MEDIUM_TAG} tags than media; give each tag one video or image."
            )
        count = self.counts.pop(0)
        self.input_ids += [self.medium_token_id] * count
        self.labels += [IGNORE_INDEX] * count

    def label_markup(self) -> None:
        """Puts the chat markup and the line breaks among what is learned, wherever they are."""
        markup = {self.tokenizer.convert_tokens_to_ids(name) for name in (TURN_START, TURN_END)}
        markup.update(self.tokenizer.encode("\n", add_special_tokens=False))
        self.labels = [i if i in markup else label for i, label in zip(self.input_ids, self.labels)]


def _turns(conversation: Conversation) -> list[Turn]:
    """Who says what, whichever of the two sets of keys the conversation has."""
    turns = []
    for turn in conversation:
        role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if role not in _ROLES or not isinstance(text, str):
            raise BimbaError(
                f"A conversation turn is from {role!r}; expected 'human' or 'gpt' (or user, assistant, system), and "
                f"text, not {text!r}."
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:  # Python lets bytes of a terminal pass that are no text, as such letters
            near = text[max(error.start - 20, 0) : error.start + 20]
            raise BimbaError(f"A text has bytes that are not UTF-8, here: {near!r}. Give it in UTF-8.") from error
        turns.append((_ROLES[role], text))
    return turns


def _as_in_original(turns: list[Turn], recipe: Recipe, has_medium: bool) -> list[Turn]:
    """What the original does to the words before it tokenises them."""
    if recipe.drops_leading_answer and turns and turns[0][0] != "user":
        turns = turns[1:]
    if not has_medium:
        return turns
    if recipe.medium_first:
        turns = [(role, _medium_first(text)) for role, text in turns]
    if recipe.drops_noise_marker:
        turns = [(role, text.replace(NOISE_MARKER, "")) for role, text in turns]
    return turns


def _medium_first(text: str) -> str:
    if text.count(MEDIUM_TAG) != 1 or text.startswith(MEDIUM_TAG):
        return text
    return f"{MEDIUM_TAG}\n{text.replace(MEDIUM_TAG, '').strip()}".strip()


def _write(ids: _Ids, turns: Sequence[Turn], recipe: Recipe) -> None:
    has_medium = bool(ids.counts)
    ids.add_markup(f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n")
    for role, text in _as_in_original(list(turns), recipe, has_medium):
        whole = recipe.tokenisation == "whole"
        just_words = (recipe.literal_tags and not has_medium) or (role == "assistant" and not whole)
        pieces = [text] if just_words else text.split(MEDIUM_TAG)
        if whole:
            _write_whole(ids, role, pieces)
        else:
            _write_in_parts(ids, role, pieces, train_markup=recipe.labels == "markup")
    if recipe.labels == "markup":
        ids.label_markup()


def _write_in_parts(ids: _Ids, role: str, pieces: list[str], *, train_markup: bool) -> None:
    """A turn; between its ``pieces`` stand the media."""
    speaks = role == "assistant"
    ids.add_markup(f"<|im_start|>{role}\n", train=speaks and train_markup)
    for number, piece in enumerate(pieces):
        if number > 0:
            ids.add_medium()
        if piece:
            ids.add_text(piece, train=speaks)
    ids.add_markup("<|im_end|>", train=speaks)
    ids.add_markup("\n", train=speaks and train_markup)


def _write_whole(ids: _Ids, role: str, pieces: list[str]) -> None:
    """A turn, tokenised together with its markup; all of an assistant's is learned."""
    pieces = [f"<|im_start|>{role}\n{pieces[0]}", *pieces[1:]]
    pieces[-1] += "<|im_end|>\n"
    for number, piece in enumerate(pieces):
        if number > 0:
            ids.add_medium()
        ids.add_markup(piece, train=role == "assistant")


def _check_all_used(ids: _Ids) -> None:
    if ids.counts:
        raise BimbaError(
            f"{len(ids.counts)} media have no {MEDIUM_TAG} tag in the conversation; "
            "put one tag per video or image into the question."
        )


def tokenize_conversation(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    medium_token_counts: Sequence[int],
    max_length: int | None = None,
    recipe: Recipe = DEFAULT,
    medium_token: str = VIDEO_TOKEN,
) -> dict[str, Tensor]:
    """A training sample.

    Args:
        conversation: turns in LLaVA's format; each ``<image>`` tag stands for one medium.
        medium_token_counts: how many tokens each medium becomes, in order; empty for a conversation about nothing
            seen.
        max_length: the longest sequence that may be made, in tokens.
        recipe: how turns are tokenised and what is learned.
        medium_token: ``VIDEO_TOKEN`` or ``IMAGE_TOKEN``: what stands for these media.

    Returns:
        ``input_ids`` (L,) int64 and ``labels`` (L,) int64 with -100 where nothing is learned.

    Raises:
        SequenceTooLongError: the sample is longer than ``max_length``. Samples are never cut: a cut could go
            through the tokens of a medium or lose the answer.
        BimbaError: tags and media do not match, or a turn is malformed or not UTF-8.
    """
    ids = _Ids(tokenizer, medium_token_counts, medium_token)
    _write(ids, _turns(conversation), recipe)
    _check_all_used(ids)
    if max_length is not None and len(ids.input_ids) > max_length:
        medium = "image" if medium_token == IMAGE_TOKEN else "video"
        raise SequenceTooLongError(
            f"The sample is {len(ids.input_ids)} tokens long ({sum(medium_token_counts)} of them {medium}); the limit "
            f"is {max_length}. Use fewer frames, more temporal pooling, or raise data.max_length."
        )
    return {"input_ids": torch.tensor(ids.input_ids), "labels": torch.tensor(ids.labels)}


def tokenize_prompt(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, video_token_counts: Sequence[int]
) -> Tensor:
    """The ids (L,) int64 of a conversation whose next words are the assistant's: ready for ``generate``.

    Raises:
        BimbaError: tags and media do not match, or a turn is malformed or not UTF-8.
    """
    ids = _Ids(tokenizer, video_token_counts)
    _write(ids, _turns(conversation), DEFAULT)
    _check_all_used(ids)
    ids.add_markup("<|im_start|>assistant\n")
    return torch.tensor(ids.input_ids)
