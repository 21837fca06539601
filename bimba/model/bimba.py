"""Steps [3] to [5]: the model. Read ``forward`` first; it is the whole method.

A transformers model: ``save_pretrained``, ``from_pretrained``, ``generate``, LoRA by peft, all as usual.
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
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    Qwen2ForCausalLM,
    RepetitionPenaltyLogitsProcessor,
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
from bimba.model.mamba import IN_FLOAT32, MambaMixer
from bimba.model.projector import Projector
from bimba.model.queries import pool_queries, query_grid
from bimba.model.question import question_ids
from bimba.model.splice import add_newlines, num_video_tokens, splice
from bimba.model.vision import patch_features
from bimba.types import BimbaError

PixelValues = Tensor | list[Tensor]  # (V, T, 3, height, width), or V tensors of (T, 3, height, width)
# What transformers calls the argument for keys and values: "cache" from 5.24 on, "past_key_values" before.
CACHE = "cache" if "cache" in inspect.signature(Qwen2ForCausalLM.forward).parameters else "past_key_values"
MEDIA = ("pixel_values_videos", "pixel_values_images", "image_sizes")  # forward's arguments, one item per medium each


class BimbaForConditionalGeneration(PreTrainedModel, GenerationMixin):
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
            videos = [] if pixel_values_videos is None else self.encode_videos_in(input_ids, pixel_values_videos)
            images = [] if pixel_values_images is None else self.encode_images(pixel_values_images, image_sizes)
            # A model can write a placeholder: after a cached beginning and without pixels it is a token like any other.
            if videos or images or cache is None or not cache.get_seq_length():
                inputs_embeds = self.embed(input_ids, videos, images)
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

    def embed(self, input_ids: Tensor, videos: list[Tensor], images: list[Tensor]) -> Tensor:
        """A prompt as the language model reads it.

        Args:
            input_ids: (B, L), as for :meth:`forward`.
            videos, images: (tokens, C) each, in order of appearance.

        Returns:
            (B, L, C): embeddings, with the tokens of videos and images in the place of their placeholders.

        Raises:
            BimbaError: another number of placeholders than of tokens.
        """
        is_video, is_image = input_ids == self.config.video_token_id, input_ids == self.config.image_token_id
        # Placeholders may lie behind the last row: the vocabulary of adapters is cut to the tokenizer's.
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(is_video | is_image, 0))
        return splice(splice(embeddings, is_video, videos, "video"), is_image, images, "image")

    @property
    def question_conditioned(self) -> bool:
        """Whether a video is compressed anew for each question."""
        return self.compressor is not None and self.compressor.question_conditioned

    def questions(self, input_ids: Tensor, num_frames: Sequence[int]) -> list[Tensor] | None:
        """The ids (P,) of the question about each video (see :mod:`bimba.model.question`); None if nobody reads them.

        Args:
            input_ids: (B, L), as for :meth:`forward`.
            num_frames: of each video that stands in it.

        Raises:
            BimbaError: the prompt has another number of placeholders, or a video outside a whole turn.
        """
        if not self.question_conditioned:
            return None
        config = self.config
        grids = [query_grid(number, config.patch_grid, config.reduction) for number in num_frames]
        return question_ids(
            input_ids,
            [num_video_tokens(groups, side, side, config.newline_position) for groups, side in grids],
            (config.video_token_id, config.image_token_id),
            (config.turn_start_token_id, config.turn_end_token_id),
        )

    def encode_videos_in(self, input_ids: Tensor, pixel_values: PixelValues) -> list[Tensor]:
        """The tokens of the videos in a prompt, each compressed for its question if the compressor reads questions."""
        return self.encode_videos(pixel_values, self.questions(input_ids, [len(video) for video in pixel_values]))

    def passes(self, pixel_values: PixelValues, questions: Sequence[Tensor] | None = None) -> list[list[int]]:
        """Which videos go through the model as one batch: those with equally many frames and words of their question.

        Nothing is padded, so no video's tokens depend on another one.
        """
        members: dict[tuple[int, int], list[int]] = {}
        for i, video in enumerate(pixel_values):
            members.setdefault((len(video), 0 if questions is None else len(questions[i])), []).append(i)
        return list(members.values())

    def encode_videos(self, pixel_values: PixelValues, questions: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Like :meth:`encode_video` for many videos, with one question each."""
        if questions is not None and len(questions) != len(pixel_values):
            raise BimbaError(f"Got {len(pixel_values)} videos and {len(questions)} questions; give one per video.")
        tokens: list[Tensor] = [torch.empty(0)] * len(pixel_values)
        for members in self.passes(pixel_values, questions):
            space_time_tokens = self.space_time_tokens(torch.stack([pixel_values[i] for i in members]))
            asked = None if questions is None else torch.stack([questions[i] for i in members])
            for i, compressed in zip(members, self.compress(space_time_tokens, asked)):
                tokens[i] = compressed
        return tokens

    def encode_video(self, pixel_values: Tensor, question: Tensor | None = None) -> Tensor:
        """One video to the tokens the language model reads.

        Args:
            pixel_values: (T, 3, height, width) normalised frames.
            question: (P,) the ids of the question, as :meth:`questions` finds them in a prompt, for a compressor with
                ``question_conditioned``; None for all others.

        Returns:
            (tokens, C): vision, projector, compressor, newlines.

        Raises:
            BimbaError: a question is missing, is empty, or has nobody to read it.
        """
        return self.encode_videos([pixel_values], None if question is None else [question])[0]

    def encode_images(self, tiles: Sequence[Tensor], image_sizes: Sequence[ImageSize] | None) -> list[Tensor]:
        """Like :meth:`encode_image` for many images.

        Raises:
            BimbaError: another number of sizes than of images.
        """
        sizes = () if image_sizes is None else image_sizes
        if len(tiles) != len(sizes):
            raise BimbaError(
                f"Got pixel_values_images of {len(tiles)} images and {len(sizes)} image_sizes; "
                "give one (width, height) per image."
            )
        return [self.encode_image(*image) for image in zip(tiles, sizes)]

    def encode_image(self, tiles: Tensor, image_size: ImageSize) -> Tensor:
        """One image to the tokens the language model reads.

        Args:
            tiles: (tiles, 3, height, width) normalised pixels, the whole image first.
            image_size: (width, height) of the image before it was cut into tiles.

        Returns:
            (tokens, C): vision, projector, newlines. Images pass neither pooling nor compressor.

        Raises:
            BimbaError: the tiles have a wrong shape, or are not as many as an image of this size has.
        """
        features = self.projector(patch_features(self.vision_tower, tiles))  # (tiles, H, W, C)
        size = [int(number) for number in image_size]  # rows of a tensor would divide in single precision
        return self.config.anyres.pack(features, self.image_newline, size)

    def space_time_tokens(self, pixel_values: Tensor) -> Tensor:
        """(B, T, 3, height, width) -> (B, T, H, W, C): vision and projector, which no question changes."""
        features = patch_features(self.vision_tower, pixel_values.flatten(0, 1))
        tokens: Tensor = self.projector(features).unflatten(0, pixel_values.shape[:2])
        return tokens

    def compress(self, space_time_tokens: Tensor, questions: Tensor | None = None) -> list[Tensor]:
        """Compressor and newlines.

        Args:
            space_time_tokens: (B, T, H, W, C).
            questions: (B, P) ids, as for :meth:`encode_video`.

        Returns:
            The tokens (tokens, C) of each video.

        Raises:
            BimbaError: as for :meth:`encode_video`.
        """
        question = self._embed_questions(questions, space_time_tokens)
        queries = pool_queries(space_time_tokens, self.config.reduction)  # (B, T', H', W', C)
        grids = queries
        if self.compressor is not None:
            grids = self.compressor(space_time_tokens, queries.flatten(2, 3), question).unflatten(2, queries.shape[2:4])
        return [add_newlines(grid, self.image_newline, self.config.newline_position) for grid in grids]

    def _embed_questions(self, questions: Tensor | None, space_time_tokens: Tensor) -> Tensor | None:
        """(B, P) ids -> (B, P, C) as the compressor reads them: the language model's embeddings, without positions.

        Detached: the compressor learns to read the words of the language model, and does not change them.
        """
        if not self.question_conditioned:
            if questions is not None:
                raise BimbaError(
                    "Got a question for a video, and the compressor of this model reads none (question_conditioned is "
                    "false); leave it out."
                )
            return None
        if questions is None or not questions.shape[1]:
            received = "none" if questions is None else "an empty one"
            raise BimbaError(
                f"This model compresses a video for the question about it (question_conditioned=true); received "
                f"{received}. Give its ids: encode_video(pixels, model.questions(input_ids, [len(pixels)])[0]). Or "
                "call the model with input_ids, or ask through bimba.VideoQA, which find the question themselves."
            )
        embedded: Tensor = self.get_input_embeddings()(questions.to(space_time_tokens.device))
        return embedded.detach().to(space_time_tokens.device)

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

    def _expand_inputs_for_generation(  # type: ignore[override]
        self, expand_size: int = 1, **kwargs: Any
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        """Beams and several answers per prompt: each copy of a prompt gets its videos and images."""
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
        return input_ids, expanded

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
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc, unused-ignore]
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        # Once the cache holds videos and images, only new tokens pass the model.
        if kwargs.get("is_first_iteration", False) or not kwargs.get("use_cache", True):
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


AutoModel.register(BimbaConfig, BimbaForConditionalGeneration)
AutoModelForImageTextToText.register(BimbaConfig, BimbaForConditionalGeneration)
