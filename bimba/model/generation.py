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
        input_ids, expanded = super()._expand_inputs_for_generation(expand_size, **kwargs)  # type: ignore[misc]
        num_prompts = len(input_ids) // expand_size
        for name, items in media.items():
            if len(items) % num_prompts:
                raise BimbaError(
                    f"Got {name} of {len(items)} for {num_prompts} prompts; generating several sequences per prompt "
                    "takes the same number of videos, and of images, in each. Generate for one prompt at a time."
                )
            per_prompt = len(items) // num_prompts
            expanded[name] = [
                items[prompt * per_prompt + i]
                for prompt in range(num_prompts)
                for _ in range(expand_size)
                for i in range(per_prompt)
            ]
        return input_ids, {**expanded, _PROMPT_LENGTH: input_ids.shape[1]}

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
