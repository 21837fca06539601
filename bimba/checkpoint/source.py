"""A checkpoint as it lies on disk, whatever its layout: configuration, tensors still in their files, processor.

======================  =====================================================================================
layout                  recognised by
======================  =====================================================================================
ours                    ``config.json`` with model type ``bimba``
the original, full      ``config.json`` with model type ``llava_qwen``, ``model.safetensors`` or shards
the original, adapter   ``adapter_config.json``, ``adapter_model.bin`` or ``.safetensors``, and
                        ``non_lora_trainables.bin``; needs its base, a full one, or that converted to ours
======================  =====================================================================================
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from bimba.checkpoint import lora, original, original_tokenizer
from bimba.checkpoint.errors import FETCH_AGAIN, explained
from bimba.checkpoint.hub import from_hub
from bimba.checkpoint.keymap import PEFT_PREFIX, is_ignored, to_ours
from bimba.checkpoint.tensors import (
    FirstRows,
    Stored,
    binary_tensors,
    has_model,
    listing,
    model_tensors,
    read_json,
    safetensors_tensors,
)
from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.compressor import reduction_of
from bimba.model.config import BimbaConfig
from bimba.model.processor import BimbaProcessor
from bimba.types import BimbaError, is_count

log = logging.getLogger(__name__)

SHIPPED = {"bimba-tiny": "bimba_tiny"}
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_OTHER_TRAINED = "non_lora_trainables.bin"
_VOCABULARY = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


@dataclass
class Source:
    """A checkpoint of which nothing but names and shapes has been read.

    Attributes:
        folder: where it lies.
        config: what to build.
        tensors: by our names; read with ``tensors[name][...]``.
        processor: its processor.
        generation_config: its defaults for ``generate``.
        adapter: a LoRA adapter that is to stay live; already merged ones are part of ``tensors``.
        is_ours: whether it lies in our layout.
    """

    folder: Path
    config: BimbaConfig
    tensors: dict[str, Stored]
    processor: BimbaProcessor
    generation_config: GenerationConfig | None
    adapter: lora.Adapter | None = None
    is_ours: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The type most weights are stored in: that of the largest tensor."""
        return max(self.tensors.values(), key=lambda stored: math.prod(stored.shape))[...].dtype

    def set_temporal_pooling(self, temporal_pooling: int) -> None:
        """Overrides what the checkpoint says.

        Raises:
            BimbaError: not one or more whole frames, or a compressor whose ``reduction`` says otherwise.
        """
        if not is_count(temporal_pooling):  # lmms-eval reads 2.5 of its command line
            raise BimbaError(f"temporal_pooling is {temporal_pooling!r}; expected 1 or more frames, a whole number.")
        reduction = reduction_of(self.config.compressor)
        if reduction is not None and reduction[0] != temporal_pooling:
            raise BimbaError(
                f"Got temporal_pooling={temporal_pooling} for a model whose compressor has "
                f"reduction={list(reduction)}, {reduction[0]} frames per query. Leave temporal_pooling out, or load "
                f"the model with the compressor's reduction=[{temporal_pooling}, {reduction[1]}] "
                "(load_pretrained(..., compressor=...))."
            )
        self.config.temporal_pooling = self.processor.temporal_pooling = temporal_pooling

    def check(self, fresh: str | None = None) -> None:
        """Compares the tensors with what the configuration asks for, before any is read.

        Args:
            fresh: prefix of tensors that may be absent, as they are to be initialised.

        Raises:
            BimbaError: tensors are missing, unexpected, or of another size.
        """
        with explained(self.folder / "config.json", "model"):
            expected = expected_shapes(self.config)
        tied = {_VOCABULARY[1]} if self.config.text_config.tie_word_embeddings else set()
        optional = tied | {name for name in expected if fresh is not None and name.startswith(fresh)}
        wrong = {
            "missing": sorted(expected.keys() - self.tensors.keys() - optional),
            "unexpected": sorted(self.tensors.keys() - expected.keys()),
            "of another size": [
                f"{name} {stored.shape} (expected {expected[name]})"
                for name, stored in sorted(self.tensors.items())
                if name in expected and stored.shape != expected[name]
            ],
        }
        if any(wrong.values()):
            details = "; ".join(f"{kind}: {listing(names)}" for kind, names in wrong.items() if names)
            raise BimbaError(f"The weights in {self.folder} do not fit its config.json ({details}). {FETCH_AGAIN}")


def expected_shapes(config: BimbaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model; nothing is allocated."""
    with torch.device("meta"):
        model = BimbaForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def open_checkpoint(
    path_or_name: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None, merge: bool = True
) -> Source:
    """Opens a checkpoint of any layout.

    Args:
        path_or_name: a folder, a shipped checkpoint ("bimba-tiny"), or a model on the Hugging Face hub ("org/name").
        base: where the base of an adapter lies; None: where its ``adapter_config.json`` says.
        merge: fold an adapter into the weights, or hand it over apart.

    Raises:
        BimbaError: no such checkpoint, or one that cannot be read.
    """
    folder = checkpoint_folder(path_or_name)
    if (folder / lora.CONFIG).exists():
        return _open_adapter(folder, base, merge)
    if base is not None:
        raise BimbaError(
            f"The checkpoint {folder} is no adapter (it has no {lora.CONFIG}), so it takes no base={base}."
        )
    model_type = read_json(folder / "config.json").get("model_type")
    return _open_ours(folder) if model_type == BimbaConfig.model_type else _open_original(folder)


def checkpoint_folder(path_or_name: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint that is named by path, by the name of one that ships in the package, or on the hub.

    Raises:
        BimbaError: there is no such folder, or it holds no checkpoint.
    """
    name = os.fspath(path_or_name)
    folder = Path(str(files("bimba"))) / "assets" / SHIPPED[name] if name in SHIPPED else Path(name)
    if not folder.exists() and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        folder = from_hub(name)
    if not folder.is_dir():
        found = f"{folder} is a file, no checkpoint" if folder.is_file() else f"There is no checkpoint folder {folder}"
        raise BimbaError(
            f"{found}; give the `checkpoint` folder of a training run, a downloaded checkpoint, or a shipped one: "
            f"{', '.join(SHIPPED)}."
        )
    if not (folder / "config.json").exists() and not (folder / lora.CONFIG).exists():
        held = listing(sorted(path.name for path in folder.iterdir()), 5) or "nothing"
        raise BimbaError(
            f"The folder {folder} is not a checkpoint: it has no config.json (it holds: {held}). "
            "Give the folder that save_pretrained wrote, such as outputs/<run>/checkpoint."
        )
    return folder


def _open_ours(folder: Path) -> Source:
    with explained(folder / "config.json", "model"):
        try:
            config = BimbaConfig.from_pretrained(folder)
            _ = config.reduction  # raises where there is no such compressor
        except BimbaError as error:
            raise BimbaError(f"{folder / 'config.json'}: {error}") from error
    tensors = model_tensors(folder)
    _check_processor_files(folder)
    with explained(folder, "processor"):
        processor = BimbaProcessor.from_pretrained(folder)
    original_tokenizer.check_tokenizer(processor.tokenizer, folder)
    original_tokenizer.set_turns(config, processor.tokenizer)
    return Source(folder, config, tensors, processor, _generation_config(folder), is_ours=True)


def _check_processor_files(folder: Path) -> None:
    """What transformers says of a file that is missing names neither it nor what to do; old releases had the last."""
    for names in (
        ("tokenizer.json",),
        ("processor_config.json", "preprocessor_config.json"),
    ):  # the last: older releases
        if not any((folder / name).exists() for name in names):
            held = listing(sorted(path.name for path in folder.iterdir()), 20)
            raise BimbaError(f"The checkpoint {folder} has no {names[0]} (it holds: {held}). {FETCH_AGAIN}")


def _open_original(folder: Path) -> Source:
    config = original.read_config(folder)
    tensors = _renamed(folder, model_tensors(folder))
    if config.text_config.tie_word_embeddings and tensors.pop(_VOCABULARY[1], None) is not None:
        log.info("Of %s, lm_head.weight is left out: config.json ties it to the embedding", folder)
    processor = original_tokenizer.build_processor(config, original_tokenizer.read_tokenizer(folder))
    return Source(folder, config, tensors, processor, _generation_config(folder))


def _open_adapter(folder: Path, base: str | os.PathLike[str] | None, merge: bool) -> Source:
    settings = lora.read_settings(folder)
    if has_model(folder):
        raise BimbaError(f"The folder {folder} holds an adapter and a whole model; move one of them elsewhere.")
    source = _open_base(folder, settings, base)
    if (folder / "config.json").exists():
        try:
            source.config = original.read_config(folder, source.config)
        except BimbaError as error:
            raise BimbaError(f"The adapter {folder} does not fit the base {source.folder}. {error}") from error
        source.processor = original_tokenizer.build_processor(source.config, source.processor.tokenizer)
    source.tensors |= _renamed(folder, _without_peft(binary_tensors(folder / _OTHER_TRAINED)))
    if any(name.startswith("compressor.") for name in source.tensors):
        source.config.compressor = dict(original.COMPRESSOR)  # an older adapter's config.json may not say so

    # The original cuts the padded vocabulary to the tokenizer's, behind which our placeholders stand.
    rows = min(source.config.video_token_id, source.config.text_config.vocab_size)
    source.config.text_config.vocab_size = rows
    for name in _VOCABULARY:
        if name in source.tensors and source.tensors[name].shape[0] > rows:
            source.tensors[name] = FirstRows(source.tensors[name], rows)

    path = next((folder / name for name in _ADAPTER_FILES if (folder / name).exists()), None)
    if path is None:
        raise BimbaError(f"The adapter {folder} has neither {' nor '.join(_ADAPTER_FILES)}. {FETCH_AGAIN}")
    stored = binary_tensors(path) if path.suffix == ".bin" else safetensors_tensors(path)
    adapter = lora.Adapter(settings, lora.pair_factors(folder, _renamed(folder, _without_peft(stored))))
    merged = adapter.merge(source.tensors)  # also checks that the adapter fits, so it comes first
    if merge:
        source.tensors = merged
    else:
        source.adapter = adapter
    source.folder = folder
    return source


def _open_base(folder: Path, settings: dict[str, Any], base: str | os.PathLike[str] | None) -> Source:
    """The full checkpoint that an adapter belongs to."""
    named = settings.get("base_model_name_or_path")
    where = named if base is None else base
    if not where:
        raise BimbaError(
            f"{folder / lora.CONFIG} names no base; give the full checkpoint it was trained on with base=<folder>."
        )
    try:
        base_folder = checkpoint_folder(where)
        if (base_folder / lora.CONFIG).exists():
            raise BimbaError(f"{base_folder} is an adapter itself; expected a full checkpoint.")
        source = open_checkpoint(base_folder)
    except BimbaError as error:
        raise BimbaError(
            f"{folder} is an adapter and needs its base, {named}. {error} Pass a local copy of it with base=<folder> "
            "(on the command line: --base <folder>)."
        ) from error
    if source.config.original_config is None:
        raise BimbaError(
            f"The base {source.folder} is a checkpoint in our format; the adapter {folder} needs the one in the "
            f"original's layout that it was trained on, {named}."
        )
    return source


def _renamed(folder: Path, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Tensors by our names instead of the original's; what is left out on purpose is logged once.

    Raises:
        BimbaError: the original has no such tensors.
    """
    ignored = sorted(filter(is_ignored, tensors))
    if ignored:
        log.info("Of %s, these tensors are no weights and are left out: %s", folder, ", ".join(ignored))
    names = {name: to_ours(name) for name in tensors if not is_ignored(name)}
    if unknown := sorted(name for name, ours in names.items() if ours is None):
        raise BimbaError(
            f"The weights in {folder} are of another model; unexpected: {listing(unknown)}. Expected the tensors of "
            "LLaVA-Video over Qwen2 with SigLIP, with or without BIMBA's compressor."
        )
    return {ours: tensors[name] for name, ours in names.items() if ours is not None}


def _without_peft(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    return {name.removeprefix(PEFT_PREFIX): stored for name, stored in tensors.items()}


def _generation_config(folder: Path) -> GenerationConfig | None:
    path = folder / "generation_config.json"
    if not path.exists():
        return None
    with explained(path, "settings for generation"):
        return GenerationConfig.from_dict(read_json(path))
