"""Steps [3] to [5]: the model. Read ``forward`` first; it is the whole method.

A transformers model: ``save_pretrained``, ``from_pretrained``, ``generate``, LoRA by peft, all as usual. How a medium
becomes tokens is in :mod:`bimba.model.media`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    PreTrainedModel,
    Qwen2ForCausalLM,
    SiglipVisionModel,
)
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from bimba.model.adapters import merged_state_dict
from bimba.model.anyres import ImageSize
from bimba.model.attention import AttentionMixer
from bimba.model.compressor import Compressor, build_compressor
from bimba.model.config import BimbaConfig
from bimba.model.generation import BimbaGenerationMixin
from bimba.model.mamba import IN_FLOAT32, MambaMixer
from bimba.model.media import PixelValues
from bimba.model.projector import Projector
from bimba.types import BimbaError

# What transformers calls the argument for keys and values: "cache" from 5.24 on, "past_key_values" before.
CACHE = "cache" if "cache" in inspect.signature(Qwen2ForCausalLM.forward).parameters else "past_key_values"


class BimbaForConditionalGeneration(PreTrainedModel, BimbaGenerationMixin):
    """SigLIP, projector, selective-scan compressor and Qwen2.

    With ``device_map`` any part may be on any device, and any but the compressor and ``image_newline`` offloaded.

    Attributes:
        vision_tower, projector, image_newline, compressor (None: pooled queries only), language_model.
    """

    config: BimbaConfig
    config_class = BimbaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["video", "image", "text"]
    model_tags = ["bimba", "video-text-to-text", "arxiv:2503.09590"]  # of what push_to_hub uploads
    supports_gradient_checkpointing = True
    _no_split_modules = ["SiglipEncoderLayer", "Qwen2DecoderLayer", "MambaBlock"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _keep_in_fp32_modules_strict = [rf"\.mixer\.{name}$" for name in IN_FLOAT32]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: BimbaConfig):
        super().__init__(config)
        hidden_size = config.text_config.hidden_size
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.projector = Projector(config.vision_config.hidden_size, hidden_size)
        self.image_newline = nn.Parameter(torch.empty(hidden_size))
        self.compressor = build_compressor(config.compressor, hidden_size)
        self.language_model = Qwen2ForCausalLM(config.text_config)
        self.post_init()
        if self.compressor is not None:
            # Whatever it is, it is on one device.
            self._no_split_modules = [*(self._no_split_modules or ()), type(self.compressor).__name__]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.normal_(self.image_newline, std=self.config.text_config.hidden_size**-0.5)
        elif isinstance(module, Compressor | MambaMixer | AttentionMixer):
            module.reset_parameters()  # transformers' default would undo the zero out_proj and the special dt

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """transformers takes a part of ours for loaded that has no weights beside those of its own parts."""
        fresh = not any(getattr(weight, "_is_hf_initialized", False) for weight in module.parameters())
        asked = fresh and isinstance(module, Compressor | AttentionMixer)
        super()._initialize_weights(module, is_custom_code and not asked)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values_videos: PixelValues | None = None,
        pixel_values_images: Sequence[Tensor] | None = None,
        image_sizes: Sequence[ImageSize] | None = None,
        inputs_embeds: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Answers a prompt about videos and images.

        Args:
            input_ids: (B, L) int64; each video stands as a run of ``config.video_token_id``, as long as the
                video's tokens (``BimbaProcessor.num_video_tokens``), and each image as one of
                ``config.image_token_id`` (``BimbaProcessor.num_image_tokens``). With
                ``question_conditioned`` in Qwen2's chat format.
            attention_mask: (B, L), 1 = token, 0 = padding.
            pixel_values_videos: normalised frames of the videos in order of appearance.
            pixel_values_images: one (tiles, 3, height, width) per image in order of appearance
                (``BimbaProcessor.image_tiles``).
            image_sizes: (width, height) of each image before it was cut into tiles.
            inputs_embeds: (B, L, C) instead of ``input_ids``, the tokens of videos and images already in place.
            cache: keys and values of what stands before ``input_ids``; unless that is nothing, placeholders count as
                such only where pixels come with them.
            past_key_values: the same, by the name that transformers gives it before 5.24.
            labels: (B, L) int64, -100 = not trained on.

        Returns:
            ``loss`` (mean over the labelled tokens), ``logits`` (B, L, vocabulary), and the cache, which
            transformers 5.24 calls ``cache`` and older ones ``past_key_values``.

        Raises:
            BimbaError: placeholders and videos or images do not match, or pixels have a wrong shape.
        """
        cache = past_key_values if cache is None else cache
        if inputs_embeds is None:
            if input_ids is None:
                raise BimbaError("The model was called with neither input_ids nor inputs_embeds; give one of them.")
            has_media = any(pixels is not None and len(pixels) for pixels in (pixel_values_videos, pixel_values_images))
            # A model can write a placeholder: after a cached beginning and without pixels it is a token like any other.
            if has_media or cache is None or not cache.get_seq_length():
                inputs_embeds = self.embed_prompt(input_ids, pixel_values_videos, pixel_values_images, image_sizes)
            else:
                inputs_embeds = self.get_input_embeddings()(input_ids)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **{CACHE: cache},
            **kwargs,
        )

    def save_pretrained(  # type: ignore[override]  # its other arguments pass through
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """As of any transformers model, but it writes the whole model always: live LoRA adapters merged.

        ``self`` keeps them. transformers itself would write an adapter without its base, or names that
        ``from_pretrained`` does not know. For the adapter alone, save what ``get_adapter_state_dict()`` returns.
        ``push_to_hub`` uploads what this writes.

        Args:
            state_dict: what to write instead of the weights, as it is; of a model with adapters, merged ones.

        Raises:
            BimbaError: an adapter that is no plain LoRA, or a ``state_dict`` that is not merged.
        """
        if state_dict is None:
            state_dict = merged_state_dict(self)
        elif live := [name for name in state_dict if ".base_layer." in name]:
            raise BimbaError(
                f"save_pretrained got a state_dict with adapters that are not merged ({live[0]} and {len(live) - 1} "
                "more), which could not be loaded again; leave state_dict out, and they are merged."
            )
        by_itself, self._hf_peft_config_loaded = self._hf_peft_config_loaded, False  # True: write the adapter only
        try:
            super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        finally:
            self._hf_peft_config_loaded = by_itself


AutoModel.register(BimbaConfig, BimbaForConditionalGeneration)
AutoModelForImageTextToText.register(BimbaConfig, BimbaForConditionalGeneration)
