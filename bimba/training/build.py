"""From the node ``model`` of the configuration to a model and its processor: loaded, or new with random weights."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from bimba.training.model_settings import DTYPES, ModelSettings
from bimba.types import BimbaError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bimba.checkpoint import Stored
    from bimba.data.recipe import Recipe
    from bimba.model.bimba import BimbaForConditionalGeneration
    from bimba.model.config import BimbaConfig
    from bimba.model.processor import BimbaProcessor

log = logging.getLogger(__name__)

# What may differ between a checkpoint and model.config: options of a run, how random weights are drawn, and how many
# rows the vocabulary is padded to (an adapter of the original has its base's cut to the tokenizer's).
NO_SIZES = (
    "num_frames",
    "temporal_pooling",
    "text_config.vocab_size",
    "text_config.initializer_range",
    "vision_config.initializer_range",
)
# Keys that transformers reads, though it writes others in their place.
OLDER_NAMES = ("attn_implementation", "rope_scaling", "rope_theta", "torch_dtype")


def build_model(
    settings: ModelSettings, checkpoint: str | None, base: str | None = None
) -> tuple[BimbaForConditionalGeneration, BimbaProcessor]:
    """The model training starts from.

    Args:
        settings: the node ``model``.
        checkpoint: a checkpoint's folder or name; None: random weights.
        base: where the base of an adapter lies, if ``checkpoint`` is one; None: where its files say. The adapter is
            folded into the weights.

    Raises:
        BimbaError: no checkpoint there, one of other sizes than ``settings.config``, or a base without an adapter.
    """
    _check_keys(settings.config)
    if checkpoint is None:
        if base is not None:
            raise BimbaError(f"base={base} is the base of an adapter, and there is none; give checkpoint=<adapter>.")
        model, processor = _new_model(settings)
    else:
        from bimba.checkpoint import load_pretrained

        model, processor = load_pretrained(checkpoint, **_as_wanted(settings, base))
        _fit_to_settings(model, processor, settings, checkpoint)
    _arrange(model, settings)
    return model, processor


def outline_model(
    settings: ModelSettings, checkpoint: str, base: str | None = None
) -> tuple[BimbaForConditionalGeneration, BimbaProcessor, dict[str, Stored]]:
    """As ``build_model``, with the weights still in their files (see ``bimba.training.stream``)."""
    from bimba.checkpoint import outline_pretrained

    _check_keys(settings.config)
    model, processor, tensors = outline_pretrained(checkpoint, **_as_wanted(settings, base))
    _fit_to_settings(model, processor, settings, checkpoint)
    _arrange(model, settings)
    return model, processor, tensors


def _check_keys(config: Mapping[str, Any]) -> None:
    """Raises ``BimbaError`` for keys of ``model.config`` that nobody reads: transformers keeps any key it is given."""
    from bimba.model.config import BimbaConfig

    known = BimbaConfig().to_dict()
    for name, given, names in (
        ("", config, known),
        *((f"{part}.", config.get(part) or {}, known[part]) for part in ("vision_config", "text_config")),
    ):
        for key in given:
            if key not in names and key not in OLDER_NAMES:
                similar = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean model.config.{name}{similar[0]}?" if similar else "; remove it."
                raise BimbaError(f"Nobody reads model.config.{name}{key}{hint}")


def _as_wanted(settings: ModelSettings, base: str | None) -> dict[str, Any]:
    return {
        "base": base,
        "compressor": settings.compressor,
        # A compressor's reduction counts instead; a checkpoint may not be asked for both.
        "temporal_pooling": settings.config.get("temporal_pooling") if settings.reduction is None else None,
        "dtype": DTYPES[settings.dtype],
    }


def _fit_to_settings(
    model: BimbaForConditionalGeneration, processor: BimbaProcessor, settings: ModelSettings, checkpoint: str
) -> None:
    check_sizes(model.config, settings.config, checkpoint)
    if "num_frames" in settings.config:
        model.config.num_frames = processor.num_frames = settings.config["num_frames"]


def ask_as_in(recipe: Recipe, model: BimbaForConditionalGeneration, processor: BimbaProcessor) -> None:
    """Has model and processor remember how a model trained with this recipe is asked; both are saved with it."""
    model.config.newline_after_medium = processor.newline_after_medium = recipe.asks_with_newline


def _arrange(model: BimbaForConditionalGeneration, settings: ModelSettings) -> None:
    """How the layers run: what they keep for the backward pass, and whether they are compiled."""
    pooling, reduction = settings.config.get("temporal_pooling"), settings.reduction
    if reduction is not None and pooling not in (None, reduction[0]):
        log.info(
            "model.config.temporal_pooling=%d is not read: one query stands for %d frame(s), as "
            "model.compressor.reduction=[%d,%d] says",
            pooling,
            reduction[0],
            *reduction,
        )
    if settings.gradient_checkpointing:
        enable_checkpointing(model, settings)
    if settings.compile:
        layers: list[Any] = [*model.language_model.model.layers]
        layers += getattr(model.compressor, "layers", [])
        for layer in layers:
            layer.compile()  # in place: the names of the weights stay


def enable_checkpointing(model: BimbaForConditionalGeneration, settings: ModelSettings) -> None:
    """Makes the layers compute again in the backward pass what they would have kept."""
    reentrant = settings.gradient_checkpointing == "reentrant"
    # A frozen vision tower keeps nothing for a backward pass; transformers would make it run one.
    for part in [model.language_model, *([model.vision_tower] if settings.trains_vision_tower else [])]:
        # The first is the new name of the second.
        enable = getattr(part, "activation_checkpointing_enable", part.gradient_checkpointing_enable)
        enable({"use_reentrant": reentrant})
    if settings.cuts_vision_tower_off:
        log.warning(
            "The adapters of the vision tower get no gradient and stay as they are, as in the original: "
            "model.gradient_checkpointing=reentrant does not let it through layers with a frozen input. true does."
        )


def _new_model(settings: ModelSettings) -> tuple[BimbaForConditionalGeneration, BimbaProcessor]:
    """A model with random weights, and a processor around an existing tokenizer."""
    from bimba.data.tokenize import IMAGE_TOKEN, TURN_END, TURN_START, VIDEO_TOKEN
    from bimba.model.bimba import BimbaForConditionalGeneration
    from bimba.model.config import BimbaConfig
    from bimba.model.mamba import cast
    from bimba.model.processor import BimbaProcessor

    tokenizer = _load_tokenizer(settings.tokenizer)
    vocabulary = tokenizer.get_vocab()
    if absent := [token for token in (VIDEO_TOKEN, IMAGE_TOKEN, TURN_START, TURN_END) if token not in vocabulary]:
        raise BimbaError(
            f"The tokenizer {settings.tokenizer} has no {' and no '.join(absent)}, which stand for videos and images, "
            "or around the turns of a conversation; add them as special tokens."
        )
    text_config = {"vocab_size": len(tokenizer), **settings.config["text_config"]}
    if text_config["vocab_size"] < len(tokenizer):
        raise BimbaError(
            f"model.config.text_config.vocab_size is {text_config['vocab_size']}, but the tokenizer "
            f"{settings.tokenizer} has {len(tokenizer)} tokens; give at least that, or leave the key out."
        )
    given = {key: value for key, value in settings.config.items() if value is not None}
    sizes = {**given, "text_config": text_config}
    config = BimbaConfig(
        **sizes,
        compressor=settings.compressor,
        video_token_id=vocabulary[VIDEO_TOKEN],
        image_token_id=vocabulary[IMAGE_TOKEN],
        turn_start_token_id=vocabulary[TURN_START],
        turn_end_token_id=vocabulary[TURN_END],
    )
    model = BimbaForConditionalGeneration(config)
    cast(model, DTYPES[settings.dtype])
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, BimbaProcessor.of(config, tokenizer)


def _load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    from bimba.checkpoint.source import SHIPPED

    source = files("bimba") / "assets" / SHIPPED[name] if name in SHIPPED else name
    try:
        return AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise BimbaError(f"model.tokenizer={name} cannot be loaded from {source}: {error}") from error


def check_sizes(config: BimbaConfig, wanted: Mapping[str, Any], checkpoint: str) -> None:
    """Raises ``BimbaError`` unless a loaded model has the sizes that the configuration says it has."""
    have = config.to_dict()
    differences = [d for d in _differences(have, wanted, "") if d.split(":")[0] not in NO_SIZES]
    if differences:
        raise BimbaError(
            f"The checkpoint {checkpoint} is another model than model.config describes: {'; '.join(differences)}. "
            "Choose the matching model (model=bimba_tiny, model=bimba_qwen2_7b), or set these keys to the checkpoint's."
        )


def _differences(have: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str) -> list[str]:
    found = []
    for key, value in wanted.items():
        if value is None:
            continue
        if isinstance(value, Mapping) and isinstance(have.get(key), Mapping):
            found += _differences(have[key], value, f"{prefix}{key}.")
        elif key not in have or have[key] != value:
            found.append(f"{prefix}{key}: checkpoint {have.get(key)!r}, model.config {value!r}")
    return found
