"""[6] ``EncodedVideo``: a video as the language model has read it, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from bimba.data.prompt import multiple_choice, open_ended
from bimba.inference.answer import Choice, Generation, bare_options, choice_from_logits, letter_token_ids
from bimba.model.bimba import CACHE, BimbaForConditionalGeneration
from bimba.model.processor import BimbaProcessor
from bimba.types import BimbaError

MAX_NEW_TOKENS = 256
END_OF_TURN = "<|im_end|>"
# Greedy, as the original evaluates, whatever the checkpoint's generation_config says; None is transformers' default.
_UNLESS_ASKED = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "max_length": None,  # max_new_tokens says it
}


class Engine(Protocol):
    """What is asked of a ``VideoQA``."""

    model: BimbaForConditionalGeneration
    processor: BimbaProcessor

    @property
    def max_length(self) -> int: ...
    def tokenize(self, question: str, num_video_tokens: int) -> Tensor: ...
    def check_length(self, num_tokens: int, num_frames: int, new_tokens: int = 0) -> None: ...


@dataclass
class EncodedVideo:
    """A video as the language model has read it. Made by :meth:`VideoQA.encode`; not for use by two threads at once.

    Attributes:
        tokens: (tokens, C) what the language model reads of the video.
        prefix_ids: (P,) ids of everything before the question.
        prefix: the language model's keys and values of those P positions.
        num_frames: how many frames were sampled.
    """

    engine: Engine
    tokens: Tensor
    prefix_ids: Tensor
    prefix: DynamicCache
    num_frames: int

    @property
    def num_bytes(self) -> int:
        """Memory that the tokens and the keys and values take."""
        states = [state for layer in self._layers() for state in (layer.keys, layer.values) if state is not None]
        return int(self.tokens.nbytes) + sum(int(state.nbytes) for state in states)

    def ask(self, question: str, max_new_tokens: int | None = None, *, short: bool = False) -> str:
        """The answer in words, greedily decoded.

        Args:
            max_new_tokens: None is 256, or as many as the model's limit leaves room for.
            short: asks for a single word or phrase, with the words that the models were trained with.

        Raises:
            BimbaError: an empty question.
            SequenceTooLongError: prompt and answer are longer than the model takes.
        """
        return self.generate(open_ended(question) if short else question, max_new_tokens).text

    @torch.inference_mode()
    def generate(self, prompt: str, max_new_tokens: int | None = None, **sampling: Any) -> Generation:
        """The model's words after a prompt, which stands after the video as it is.

        Args:
            max_new_tokens: as for :meth:`ask`.
            sampling: handed to transformers' ``generate`` (``do_sample``, ``temperature``, ``num_beams``, ...). Without
                it the answer is greedy; a repetition penalty of the checkpoint's ``generation_config`` always holds.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise BimbaError(f"max_new_tokens is {max_new_tokens}; expected 1 or more.")
        embeddings = self._prepare(prompt, new_tokens=max_new_tokens or 1)
        if max_new_tokens is None:
            max_new_tokens = min(MAX_NEW_TOKENS, self.engine.max_length - embeddings.shape[1])
        model, tokenizer = self.engine.model, self.engine.processor.tokenizer
        end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        config = deepcopy(model.generation_config)
        settings = {
            **_UNLESS_ASKED,
            "max_new_tokens": max_new_tokens,
            "eos_token_id": end,
            "pad_token_id": end,
            "suppress_tokens": [model.config.video_token_id, model.config.image_token_id],  # placeholders, never words
            **sampling,
        }
        others = config.update(**settings)  # what is no setting of a GenerationConfig, such as a streamer
        ids = model.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device),
            # Beams would multiply the cached prefix in place, so they read the whole prompt anew.
            **{CACHE: self.prefix if sampling.get("num_beams", 1) == 1 else None},
            generation_config=config,
            **others,
        )[0]
        text = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return Generation(text, prompt_tokens=embeddings.shape[1], new_tokens=len(ids))

    @torch.inference_mode()
    def choose(self, question: str, options: Sequence[str]) -> Choice:
        """The likeliest of 2 to 5 options, by the probability of its letter as the first word of the answer.

        Args:
            options: option texts, with or without their letters ("A. red" or "red").

        Raises:
            BimbaError: an empty question, or too few or too many options.
            SequenceTooLongError: the prompt is longer than the model takes.
        """
        letter_ids = letter_token_ids(self.engine.processor.tokenizer, len(options))
        embeddings = self._prepare(multiple_choice(question, bare_options(options)), new_tokens=1)
        logits = self.engine.model.language_model(
            inputs_embeds=embeddings[:, len(self.prefix_ids) :],
            **{CACHE: self.prefix},
            use_cache=True,
            logits_to_keep=1,
        ).logits[0, -1]
        return choice_from_logits(logits, letter_ids)

    def _layers(self) -> list[DynamicLayer]:
        """The cache, layer by layer; every layer of Qwen2's is a DynamicLayer."""
        return [layer for layer in self.prefix.layers if isinstance(layer, DynamicLayer)]

    def _prepare(self, prompt: str, new_tokens: int) -> Tensor:
        """(1, L, C) embeddings of the whole prompt; the cache is left holding the prefix alone."""
        ids = self.engine.tokenize(prompt, len(self.tokens))
        self.engine.check_length(len(ids), self.num_frames, new_tokens)
        # Rewound before use, not after, and each layer by what it holds: an interrupted answer leaves layers of
        # different lengths behind, and must do no harm to the next one.
        for layer in self._layers():
            layer.crop(len(self.prefix_ids) - layer.get_seq_length())
        return self.engine.model.embed(ids[None].to(self.tokens.device), [self.tokens], [])
