"""The original's folder layout (LLaVA-Video, BIMBA-LLaVA): ``config.json``, in and out.

Tokenizer files are :mod:`bimba.checkpoint.original_tokenizer`'s, names of weights :mod:`bimba.checkpoint.keymap`'s.
What ``config.json`` says and our model does not need is kept in ``BimbaConfig.original_config``, so that a checkpoint
can be written back as it came.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bimba.checkpoint.errors import FETCH_AGAIN, explained
from bimba.checkpoint.tensors import read_json, write_json
from bimba.model.compressor import what_it_computes
from bimba.model.config import BimbaConfig
from bimba.model.queries import PUBLISHED_ROWS
from bimba.types import BimbaError

MODEL_TYPE = "llava_qwen"

# What its files do not say: every script of the original samples so many frames, and its evaluation, unlike its
# training data, has no line break behind the video. Where ours differ, config.json says so under _OURS, which the
# original ignores.
_SILENT = {"num_frames": 64, "newline_after_medium": False}
_OURS = "bimba"
COMPRESSOR = {"name": "mamba"}  # the original builds its one compressor with fixed options, those of our defaults

# The original knows one tower and has its sizes in its code; a folder with another tower says so in this file, where
# num_hidden_layers counts the last layer too, which the original deletes.
VISION_FILE = "tiny_vision_config.json"

# Settings of the original under which it would compute something else than we do: what we need, and what the original
# takes where the key is absent.
_REQUIRED: dict[str, tuple[Any, Any]] = {
    "mm_projector_type": ("mlp2x_gelu", "linear"),
    "mm_patch_merge_type": ("spatial_unpad", "flat"),
    "mm_spatial_pool_mode": ("bilinear", None),
    "mm_use_im_start_end": (False, False),
    "add_faster_video": (False, False),
}
_NEWLINE_IF_ABSENT = "one_token"
_TEXT_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "max_window_layers", "sliding_window", "use_sliding_window", "rms_norm_eps",
    "hidden_act", "initializer_range", "attention_dropout", "tie_word_embeddings", "bos_token_id", "eos_token_id",
    "pad_token_id",
)  # fmt: skip
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")

# What a checkpoint that was never the original's is written with: the settings of LLaVA-Video-7B-Qwen2.
_DEFAULTS = {
    "architectures": ["LlavaQwenForCausalLM"],
    "add_faster_video": False,
    "add_time_instruction": False,
    "faster_token_stride": 10,
    "force_sample": True,
    "image_crop_resolution": None,
    "image_split_resolution": None,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_lr": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": 2,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_vision_tower_lr": 2e-06,
    "model_type": MODEL_TYPE,
    "pos_skipping_range": 4096,
    "tokenizer_padding_side": "right",
    "use_cache": True,
    "use_mm_proj": True,
    "use_pos_skipping": False,
    "vision_tower_pretrained": None,
}


def read_config(folder: Path, base: BimbaConfig | None = None) -> BimbaConfig:
    """The configuration of a folder in the original's layout.

    Args:
        folder: a full checkpoint, or an adapter.
        base: the full checkpoint that an adapter belongs to; it says what the adapter's ``config.json`` does not.

    Raises:
        BimbaError: no or another kind of ``config.json``, or an adapter of other sizes than its base.
    """
    config = _read_original_config(folder, {} if base is None else base.original_config or {})
    with explained(folder / "config.json", "model"):
        sizes = {key: config[key] for key in _TEXT_KEYS if key in config}
        parts = {
            "vision_config": _vision_config(folder) if base is None else base.vision_config,
            "text_config": {**sizes, "rope_parameters": _rope_parameters(config)},
            **_SILENT,
            **_of_ours(config, folder),
        }
        try:
            return BimbaConfig(
                **parts,
                compressor=dict(COMPRESSOR) if config.get("compressor_type") else None,
                temporal_pooling=config.get("temporal_pooling", 1),
                newline_position=config.get("mm_newline_position", _NEWLINE_IF_ABSENT),
                image_grid_pinpoints=config.get("image_grid_pinpoints"),
                image_max_tiles=_max_tiles(config),
                original_config=config,
                dtype=config.get("torch_dtype"),
            )
        except BimbaError as error:  # knows nothing of files
            raise BimbaError(f"{folder / 'config.json'}: {error}") from error


def _read_original_config(folder: Path, of_base: dict[str, Any]) -> dict[str, Any]:
    """``config.json``, completed by that of an adapter's base."""
    config = read_json(folder / "config.json")
    if config.get("model_type") != MODEL_TYPE:
        raise BimbaError(
            f"The checkpoint {folder} is of model type {config.get('model_type')!r}; expected 'bimba' (ours) or "
            f"{MODEL_TYPE!r} (LLaVA-Video and BIMBA over Qwen2)."
        )
    different = [
        f"{key} {config.get(key)} (base: {of_base[key]})"
        for key in _SIZES
        if of_base.get(key, config.get(key)) != config.get(key)
    ]
    if different:
        raise BimbaError(
            f"The adapter {folder} is for a model of another size than this base: {', '.join(different)}. Give the "
            "base that its adapter_config.json names."
        )
    config = {**of_base, **config}
    if absent := [key for key in _SIZES if key not in config]:
        raise BimbaError(f"{folder / 'config.json'} does not say {', '.join(absent)}. {FETCH_AGAIN}")
    for key, (needed, if_absent) in _REQUIRED.items():
        if (value := config.get(key, if_absent)) != needed:
            raise BimbaError(
                f"{folder / 'config.json'} has {key}={value!r}{'' if key in config else ' (the default)'}, with which "
                f"the original computes something that this package does not; expected {needed!r}."
            )
    if config.get("compressor_type") not in ("bimba", None):
        raise BimbaError(
            f"{folder / 'config.json'} has compressor_type={config['compressor_type']!r}; expected 'bimba', or none."
        )
    return config


def _rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary positions of an original's ``config.json``, as transformers has them now."""
    # The first is their name since transformers 5, the second the one that the original knows.
    scaling = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
    if "type" in scaling:
        scaling["rope_type"] = scaling.pop("type")  # its name in older releases of transformers
    return {"rope_type": "default", "rope_theta": config.get("rope_theta", 1e4), **scaling}


def _of_ours(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What we wrote into an original's ``config.json``: see _SILENT."""
    ours = config.get(_OURS, {})
    if not isinstance(ours, dict) or any(type(value) is not type(_SILENT.get(key)) for key, value in ours.items()):
        raise BimbaError(f"{folder / 'config.json'} has {_OURS}={ours!r}; expected some of {_SILENT}. {FETCH_AGAIN}")
    return ours


def _vision_config(folder: Path) -> dict[str, Any] | None:
    if not (folder / VISION_FILE).exists():
        return None  # BimbaConfig's default is the original's tower
    sizes = {key: value for key, value in read_json(folder / VISION_FILE).items() if key != "note"}
    return {**sizes, "num_hidden_layers": sizes["num_hidden_layers"] - 1}


def write_config(config: BimbaConfig, dtype: str, folder: Path) -> None:
    """Writes ``config.json`` (and the tower's sizes, if they are not the original's) for the original to read.

    Raises:
        BimbaError: the original has no such compressor, or no such rotary positions.
    """
    compressor, theirs = what_it_computes(config.compressor), what_it_computes(COMPRESSOR)
    if compressor not in ({}, what_it_computes({"name": "pool"}), theirs):
        raise BimbaError(
            f"The compressor is {config.compressor}; the original has one with the options {theirs}, or none. "
            "Keep this checkpoint in our format."
        )
    if config.reduction[1] != PUBLISHED_ROWS:
        raise BimbaError(
            f"The compressor has reduction={list(config.reduction)}; the original pools {PUBLISHED_ROWS} patch rows "
            "and columns always. Keep this checkpoint in our format."
        )
    text = config.text_config
    sizes = {key: getattr(text, key) for key in _TEXT_KEYS if getattr(text, key, None) is not None}
    original = config.original_config or {}
    changed = {key: value for key, value in sizes.items() if original.get(key, value) != value}
    written = {**_DEFAULTS, **sizes, **original, **changed}
    written |= {
        "vocab_size": text.vocab_size,
        "rope_theta": text.rope_parameters["rope_theta"],
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_newline_position": config.newline_position,
        "torch_dtype": dtype,
    }
    read_back = _rope_parameters(written)
    if type(text)(**sizes, rope_parameters=read_back).rope_parameters != text.rope_parameters:
        raise BimbaError(
            f"The language model has rope_parameters={text.rope_parameters}; the original's would have {read_back}. "
            "Keep this checkpoint in our format."
        )
    written.setdefault("tokenizer_model_max_length", text.max_position_embeddings)
    if config.image_max_tiles is not None:
        written.setdefault("image_aspect_ratio", f"anyres_max_{config.image_max_tiles}")
        written.setdefault("image_grid_pinpoints", [list(size) for size in config.anyres.resolutions])
    if config.reduction[0] != 1 or "temporal_pooling" in written:
        written["temporal_pooling"] = config.reduction[0]
    different = {key: getattr(config, key) for key, value in _SILENT.items() if getattr(config, key) != value}
    written.pop(_OURS, None)
    if different:
        written[_OURS] = different
    written.pop("compressor_type", None)
    if compressor == theirs:
        written["compressor_type"] = "bimba"
    write_json(folder / "config.json", written)

    vision = config.vision_config
    if vision.to_dict() != BimbaConfig().vision_config.to_dict():
        keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels",
                "patch_size", "image_size", "hidden_act", "layer_norm_eps")  # fmt: skip
        tower = {key: getattr(vision, key) for key in keys}
        write_json(folder / VISION_FILE, {**tower, "num_hidden_layers": vision.num_hidden_layers + 1}, sort=False)


def _max_tiles(config: dict[str, Any]) -> int | None:
    """N of ``image_aspect_ratio: anyres_max_N``; None if images are cut in another way, or not at all."""
    match = re.fullmatch(r"anyres_max_(\d+)", str(config.get("image_aspect_ratio")))
    return None if match is None else int(match[1])
