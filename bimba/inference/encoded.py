"""[6] ``EncodedVideo``: a video as the language model has read it, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from bimba.inference.answer import Choice, Generation, choice_from_logits, letter_token_ids
from bimba.inference.answering import Answering
from bimba.inference.conversation import MAX_NEW_TOKENS
from bimba.inference.prefix import copy_of, cut_to, layers_of, states_of
from bimba.model.bimba import CACHE, BimbaForConditionalGeneration
from bimba.model.processor import BimbaProcessor
from bimba.types import BimbaError

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
# What decodes each answer of a batch as if it were alone.
_ROW_BY_ROW = {
    *("do_sample", "num_beams", "repetition_penalty", "no_repeat_ngram_size", "min_new_tokens"),
    *("eos_token_id", "pad_token_id", "suppress_tokens"),
}


class Engine(Protocol):
    """What is asked of a ``VideoQA``."""

    model: BimbaForConditionalGeneration
    processor: BimbaProcessor

    @property
    def max_length(self) -> int: ...
    def tokenize(self, question: str, num_video_tokens: int) -> Tensor: ...
    def tokenize_turns(self, said: Sequence[str], num_video_tokens: int) -> Tensor: ...
    def check_length(self, num_tokens: int, num_frames: int, new_tokens: int = 0) -> None: ...


@dataclass
class EncodedVideo(Answering):
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
        states = [state for layer in layers_of(self.prefix) for state in states_of(layer)]
        return int(self.tokens.nbytes) + sum(int(state.nbytes) for state in states)

    @torch.inference_mode()
    def generate(self, prompt: str, max_new_tokens: int | None = None, **sampling: Any) -> Generation:
        (ids,) = self._tokenize([prompt], max_new_tokens)
        embeddings = self._embed(ids)
        # Beams would multiply the cached prefix in place, so they read the whole prompt anew.
        prefix = self._rewound() if sampling.get("num_beams", 1) == 1 else None
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        (words,) = self._decode(embeddings, mask, prefix, self._limit(ids, max_new_tokens), sampling)
        return self._generation(words, len(ids))

    def generate_batch(
        self, prompts: Sequence[str], max_new_tokens: int | None = None, **settings: Any
    ) -> list[Generation]:
        return self.generate_together([self] * len(prompts), prompts, max_new_tokens, **settings)

    @staticmethod
    @torch.inference_mode()
    def generate_together(
        videos: Sequence[EncodedVideo], prompts: Sequence[str], max_new_tokens: int | None = None, **settings: Any
    ) -> list[Generation]:
        """As :meth:`generate_batch`, each prompt about a video of its own; all have equally many tokens."""
        check_batchable(settings)
        if not prompts:
            return []
        first = videos[0]
        prompt_ids = first._tokenize(prompts, max_new_tokens)
        length, start = max(map(len, prompt_ids)), len(first.prefix_ids)
        embeddings = torch.zeros(
            (len(prompts), length, first.tokens.shape[1]), dtype=first.tokens.dtype, device=first.tokens.device
        )
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        for row, (video, ids) in enumerate(zip(videos, prompt_ids, strict=True)):
            mask[row, start : start + length - len(ids)] = 0
            embeddings[row, start + length - len(ids) :] = video._embed(ids)[0, start:]
            video._rewound()
        layers = zip(*(layers_of(video.prefix) for video in videos), strict=True)
        copies = [tuple(map(_stacked, zip(*map(states_of, layer), strict=True))) for layer in layers]
        prefix = DynamicCache(copies)  # copies them, so that the videos' own stay as they are
        limits = [first._limit(ids, max_new_tokens) for ids in prompt_ids]
        answers = first._decode(embeddings, mask, prefix, max(limits), settings)
        # Greedy words do not depend on where they will end, so a prompt with less room just stops earlier.
        return [first._generation(words[:limit], len(ids)) for words, limit, ids in zip(answers, limits, prompt_ids)]

    @torch.inference_mode()
    def choose_letter(self, prompt: str, num_options: int) -> Choice:
        letter_ids = letter_token_ids(self.engine.processor.tokenizer, num_options)
        (ids,) = self._tokenize([prompt], 1)
        logits = self.engine.model.language_model(
            inputs_embeds=self._embed(ids)[:, len(self.prefix_ids) :],
            **{CACHE: self._rewound()},
            use_cache=True,
            logits_to_keep=1,
        ).logits[0, -1]
        return choice_from_logits(logits, letter_ids, prompt_tokens=len(ids))

    def asked(self, prompt: str) -> EncodedVideo:
        """This video: whatever is asked first, the language model reads the same."""
        return self

    @property
    def max_length(self) -> int:
        """The longest sequence the language model takes, in tokens."""
        return self.engine.max_length

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.engine.processor.tokenizer

    def turn_ids(self, said: Sequence[str]) -> Tensor:
        """(L,) ids of a conversation about this video: questions and answers in turn, a question first and last."""
        return self.engine.tokenize_turns(said, len(self.tokens))

    def prefix_copy(self) -> DynamicCache:
        """Keys and values of the prefix, for whoever lets them grow."""
        return copy_of(self._rewound())

    @torch.inference_mode()
    def continuation(self, ids: Tensor, cache: DynamicCache, max_new_tokens: int, **settings: Any) -> Tensor:
        """The ids that the model puts behind a prompt, its end of turn included.

        Args:
            ids: (L,) the whole prompt, on the CPU.
            cache: keys and values of its first positions, fewer than L; those of the others and of the answer join
                them.
            settings: as for :meth:`generate`.
        """
        embeddings = self._embed(ids)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        (words,) = self._decode(embeddings, mask, cache, max_new_tokens, settings)
        return words

    def _tokenize(self, prompts: Sequence[str], max_new_tokens: int | None) -> list[Tensor]:
        """(L,) ids of each whole prompt, if they and their answers fit into the model."""
        if max_new_tokens is not None and max_new_tokens < 1:
            raise BimbaError(f"max_new_tokens is {max_new_tokens}; expected 1 or more.")
        prompt_ids = [self.engine.tokenize(prompt, len(self.tokens)) for prompt in prompts]
        for ids in prompt_ids:
            self.engine.check_length(len(ids), self.num_frames, max_new_tokens or 1)
        return prompt_ids

    def _limit(self, ids: Tensor, max_new_tokens: int | None) -> int:
        """How many tokens the answer to a prompt may have."""
        room = min(MAX_NEW_TOKENS, self.engine.max_length - len(ids))
        return room if max_new_tokens is None else max_new_tokens

    def _embed(self, ids: Tensor) -> Tensor:
        """(1, L, C) embeddings of a whole prompt."""
        return self.engine.model.embed(ids[None].to(self.tokens.device), [self.tokens], [])

    def _decode(
        self,
        embeddings: Tensor,
        mask: Tensor,
        prefix: DynamicCache | None,
        max_new_tokens: int,
        sampling: Mapping[str, Any],
    ) -> list[Tensor]:
        """The ids of each answer, its end of turn included.

        Args:
            embeddings, mask: (B, L, C), (B, L) of whole prompts.
            prefix: keys and values of their first positions.
        """
        model = self.engine.model
        end = self.engine.processor.tokenizer.convert_tokens_to_ids(END_OF_TURN)
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
        language_model: Any = model.language_model  # transformers types generate() for a class of its own
        answers = language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            **{CACHE: prefix},
            generation_config=config,
            **others,
        )
        ends = torch.as_tensor([] if config.eos_token_id is None else config.eos_token_id, device=answers.device)
        return [_until(ids, torch.isin(ids, ends)) for ids in answers[: len(embeddings)]]

    def _generation(self, ids: Tensor, prompt_tokens: int) -> Generation:
        text = str(self.engine.processor.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return Generation(text, prompt_tokens=prompt_tokens, new_tokens=len(ids))

    def _rewound(self) -> DynamicCache:
        """The cache, holding the prefix alone: rewound before use, not after, as an answer may be interrupted."""
        return cut_to(self.prefix, len(self.prefix_ids))


def _stacked(states: Sequence[Tensor]) -> Tensor:
    """(1, heads, L, head size) each -> (B, heads, L, head size), without a copy where all are the same."""
    if all(state is states[0] for state in states):
        return states[0].expand(len(states), -1, -1, -1)
    return torch.cat(tuple(states))


def check_batchable(settings: Mapping[str, Any]) -> None:
    """Raises ``BimbaError`` unless :func:`batchable`."""
    if not batchable(settings):
        raise BimbaError(
            f"generate_batch received {settings}; expected greedy decoding by no other settings than "
            f"{', '.join(sorted(_ROW_BY_ROW))}. Ask these prompts one at a time."
        )


def batchable(sampling: Mapping[str, Any]) -> bool:
    """Whether answers so decoded may come from one batch: greedily, and by settings that know nothing of the others."""
    return not sampling.get("do_sample") and sampling.get("num_beams", 1) == 1 and set(sampling) <= _ROW_BY_ROW


def _until(ids: Tensor, is_end: Tensor) -> Tensor:
    """(L,) ids up to the first end, that included; in a batch padding follows it."""
    ends = torch.nonzero(is_end)
    return ids[: int(ends[0]) + 1] if len(ends) else ids
