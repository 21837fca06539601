"""``BimbaConfig``: every size and option of the model, in transformers' form (``config.json``)."""

from __future__ import annotations

import os
from copy import deepcopy
from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PreTrainedConfig

from bimba.types import BimbaError, is_count

if TYPE_CHECKING:
    from bimba.model.anyres import AnyRes

NEWLINE_POSITIONS = ("grid", "frame", "one_token", "no_token")

# SigLIP so400m/14-384 without its 27th layer and its head: LLaVA-Video reads the features before the last layer.
_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 384,
}
# Qwen2-7B as LLaVA-Video-7B-Qwen2 holds it.
_QWEN2_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}


class BimbaConfig(PreTrainedConfig):
    """Configuration of :class:`~bimba.model.bimba.BimbaForConditionalGeneration`.

    Args:
        vision_config: sizes of the SigLIP vision tower (``SiglipVisionConfig`` or its dict); every layer it has is
            used. Default: so400m/14-384 with 26 layers.
        text_config: sizes of the language model (``Qwen2Config`` or its dict). Default: Qwen2-7B.
        compressor: the composed Hydra node ``model.compressor`` as a dict, such as ``{"name": "mamba", ...}``; None
            hands the pooled queries to the language model as they are (LLaVA-Video).
        temporal_pooling: how many frames one frame of queries averages, unless the compressor has a ``reduction``.
        newline_position: where newline tokens go: after each row of the compressed grid ("grid", the published
            model), each frame ("frame"), the whole video ("one_token"), or nowhere ("no_token").
        num_frames: how many frames a video is read with unless the caller says otherwise.
        newline_after_medium: whether a line break stands between a video and the question when the model is asked.
            False for checkpoints of the original, as its evaluation asks, although it trained with the line break.
        image_grid_pinpoints: [width, height] in pixels of every grid of tiles an image may be fitted into (the
            original's key and order; transformers' LLaVA models write [height, width]); None: 1 x 1 to 6 x 6 tiles.
        image_max_tiles: an image with clearly more tiles is shrunk to as many tokens as these would have; None: the
            model was not trained on images that are cut into tiles, and takes none.
        video_token_id, image_token_id: the placeholder tokens that the tokens of videos and images replace; they need
            not be in the language model's vocabulary.
        turn_start_token_id, turn_end_token_id: ``<|im_start|>`` and ``<|im_end|>``; between them stands the question
            that a compressor with ``question_conditioned`` is given.
        original_config: what the ``config.json`` of a checkpoint in the original's layout said; it is written back when
            the checkpoint is converted to that layout, and read by nothing else.
    """

    model_type = "bimba"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}

    # Any: given as a dict or None, held as SiglipVisionConfig and Qwen2Config after __post_init__.
    vision_config: Any = None
    text_config: Any = None
    compressor: dict | None = None
    temporal_pooling: int = 1
    newline_position: str = "grid"
    num_frames: int = 64
    newline_after_medium: bool = True
    image_grid_pinpoints: list | None = None
    image_max_tiles: int | None = 9
    video_token_id: int = 151646
    image_token_id: int = 151647
    turn_start_token_id: int = 151644
    turn_end_token_id: int = 151645
    original_config: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        # Not above: bimba.registration may import this module when half of transformers is there.
        from transformers import Qwen2Config, SiglipVisionConfig

        if isinstance(self.vision_config, SiglipVisionConfig):
            self.vision_config = deepcopy(self.vision_config)  # the caller's keeps its head
        else:
            self.vision_config = SiglipVisionConfig(**(self.vision_config or _SO400M))
        self.vision_config.vision_use_head = False  # nobody reads what it pools
        if not isinstance(self.text_config, Qwen2Config):
            self.text_config = Qwen2Config(**(self.text_config or _QWEN2_7B))
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        if self.newline_position not in NEWLINE_POSITIONS:
            raise BimbaError(
                f"newline_position is {self.newline_position!r}; expected one of {', '.join(NEWLINE_POSITIONS)}."
            )
        for name in ("num_frames", "temporal_pooling"):
            if not is_count(value := getattr(self, name)):
                raise BimbaError(f"{name} is {value!r}; expected 1 or more frames, a whole number.")
        if self.image_max_tiles is not None:
            _ = self.anyres  # raises where the grids do not fit the vision tower
        _ = self.reduction  # raises where the compressor's does not fit the grid
        super().__post_init__(**kwargs)
        # AutoModel asks for the class that is registered for a configuration: whoever has one may ask.
        import_module("bimba.model.bimba")

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What ``from_pretrained`` builds a configuration of.

        Raises:
            BimbaError: the checkpoint is of another model. transformers would warn, and then make a model with random
                weights, as none of their names is ours.
        """
        config, others = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise BimbaError(
                f"The checkpoint {os.fspath(pretrained_model_name_or_path)} is of model type {model_type!r}; expected "
                f"{cls.model_type!r}. LLaVA-Video's and BIMBA's published checkpoints are read by "
                "bimba.checkpoint.load_pretrained, and made into ours by `bimba convert`."
            )
        return config, others

    @property
    def patch_grid(self) -> int:
        """H = W: patch rows and columns of a frame."""
        return int(self.vision_config.image_size // self.vision_config.patch_size)

    @property
    def reduction(self) -> tuple[int, int]:
        """(frames, rows): how many frames, and patch rows and columns, one query stands for.

        The compressor's option ``reduction``; without one, the published model's (temporal_pooling, 2).

        Raises:
            BimbaError: a wrong ``reduction``, or one that does not divide the grid.
        """
        from bimba.model.compressor import reduction_of  # not above: sizes alone need no torch
        from bimba.model.queries import PUBLISHED_ROWS, query_grid

        reduction = reduction_of(self.compressor) or (self.temporal_pooling, PUBLISHED_ROWS)
        query_grid(reduction[0], self.patch_grid, reduction)
        return reduction

    @property
    def anyres(self) -> AnyRes:
        """How images become tiles and tokens."""
        from bimba.model.anyres import AnyRes  # not above: sizes alone need neither torch nor image processing

        side = int(self.vision_config.image_size)
        return AnyRes(side, self.patch_grid, self.image_grid_pinpoints, self.image_max_tiles)


AutoConfig.register("bimba", BimbaConfig)
