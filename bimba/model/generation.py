"""Step [5], word by word: what ``generate`` needs to know of prompts with videos and images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from bimba.model.media import MediaEncoder
from bimba.types import BimbaError

MEDIA = ("pixel_values_videos", "pixel_values_images", "image_sizes")  # forward's arguments, one item per medium each
_PROMPT_LENGTH = "prompt_length"  # among the keyword arguments that go from step to step


class BimbaGenerationMixin(MediaEncoder, GenerationMixin):
    """transformers' generation, for :class:`~bimba.model.bimba.BimbaForConditionalGeneration`."""

    def _expand_inputs_for_generation(  # type: ignore[override]
        self, expand_size: int = 1, **kwargs: Any
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        """Beams and several answers per prompt: each copy of a prompt gets its videos and images.

        Called once, before the first step.
        """
        media = {name: kwargs.pop(name) for name in MEDIA if kwargs.get(name) is not None}
        if expand_size > 1 and media:
            media = self._repeated(media, kwargs["input_ids"], expand_size)
        input_ids, expanded = super()._expand_inputs_for_generation(expand_size, **kwargs)  # type: ignore[misc]
        return input_ids, {**expanded, **media, _PROMPT_LENGTH: input_ids.shape[1]}

    def _repeated(self, media: dict[str, Any], input_ids: Tensor, times: int) -> dict[str, list[Any]]:
        """Each prompt's own videos and images so many times. Prompts may have different numbers of them."""
        videos, images, sizes = (media.get(name, []) for name in MEDIA)
        video_tokens = [self.num_video_tokens(len(video)) for video in videos]
        image_tokens = [self.num_image_tokens(*image) for image in zip(images, sizes)]
        of_videos = _deal(video_tokens, (input_ids == self.config.video_token_id).sum(1).tolist(), "video")
        of_images = _deal(image_tokens, (input_ids == self.config.image_token_id).sum(1).tolist(), "image")
        places = dict(zip(MEDIA, (of_videos, of_images, of_images)))
        return {name: [items[i] for own in places[name] for i in own * times] for name, items in media.items()}

    def prepare_inputs_for_generation(  # type: ignore[override, unused-ignore]  # videos and images are ours; as of 5.24 it may
        self,
        input_ids: torch.LongTensor,
        inputs_embeds: Tensor | None = None,  # by name, or transformers refuses generate(inputs_embeds=...)
        **kwargs: Any,
    ) -> dict[str, Any]:
        unread = kwargs.get("next_sequence_length")
        if inputs_embeds is None and unread is not None and unread < 1:
            raise BimbaError(
                f"Got {input_ids.shape[1]} input_ids without an attention_mask for more, and a cache of "
                f"{input_ids.shape[1] - unread} positions. Give the ids of the whole prompt, cached ones included, or "
                "the rest of the ids with an attention_mask over both."
            )
        media = {name: kwargs.pop(name, None) for name in MEDIA}
        prompt_length = kwargs.pop(_PROMPT_LENGTH, input_ids.shape[1])
        if not kwargs.get("use_cache", True):
            # The whole sequence passes the model in each step. Placeholders behind the prompt were written by the
            # model: they are tokens like any other.
            if inputs_embeds is None:
                inputs_embeds = self.embed_prompt(input_ids[:, :prompt_length], **media)
            written = self.language_model.get_input_embeddings()(input_ids[:, prompt_length:])
            inputs_embeds, media = torch.cat([inputs_embeds, written], dim=1), {}
            kwargs["is_first_iteration"] = True  # embeddings are read in such a one only
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc, unused-ignore]
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        # Once the cache holds videos and images, only new tokens pass the model.
        if kwargs.get("is_first_iteration", False):
            inputs.update(media)
        return inputs

    def _get_logits_processor(  # type: ignore[override]
        self, generation_config: GenerationConfig, input_ids_seq_length: int | None = None, **kwargs: Any
    ) -> LogitsProcessorList:
        """A repetition penalty (Qwen2's own generation_config.json has one) is for what the model writes.

        The original generates from embeddings, so its penalty never sees the prompt; and placeholders in the prompt may
        have no logit that could be lowered.
        """
        processors: LogitsProcessorList = super()._get_logits_processor(  # type: ignore[misc]
            generation_config, input_ids_seq_length, **kwargs
        )
        for processor in processors:
            if isinstance(processor, RepetitionPenaltyLogitsProcessor):
                processor.prompt_ignore_length = input_ids_seq_length
        return processors


def _deal(num_tokens: list[int], num_placeholders: list[int], medium: str) -> list[list[int]]:
    """Which of the media stand in each prompt: in order, as many as fill its placeholders.

    Raises:
        BimbaError: they do not fill them.
    """
    dealt: list[list[int]] = []
    taken = 0
    for wanted in num_placeholders:
        first, filled = taken, 0
        while filled < wanted and taken < len(num_tokens):
            filled += num_tokens[taken]
            taken += 1
        if filled != wanted:
            break
        dealt.append(list(range(first, taken)))
    if len(dealt) < len(num_placeholders) or taken < len(num_tokens):
        raise BimbaError(
            f"The prompts have {num_placeholders} {medium} placeholder tokens, but the {len(num_tokens)} {medium}(s) "
            f"make {num_tokens} tokens. Build the prompts with BimbaProcessor from the media that the model is given."
        )
    return dealt
