"""Checkpoints of any layout to models, and models to our own: ``config.json``, ``model.safetensors``, the processor."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import torch
from transformers.utils import logging as logging_utils

from bimba.checkpoint import original
from bimba.checkpoint.card import write_card
from bimba.checkpoint.convert import write_weights
from bimba.checkpoint.devices import resolve_device, resolve_dtype
from bimba.checkpoint.folder import whole_folder
from bimba.checkpoint.source import Source, open_checkpoint
from bimba.checkpoint.tensors import Stored
from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.compressor import build_compressor, reduction_of, what_it_computes
from bimba.model.processor import BimbaProcessor

log = logging.getLogger(__name__)

_COMPRESSOR = "compressor."
_KEEP: Any = object()


def load_pretrained(
    path_or_name: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    merge: bool = True,
    compressor: Mapping[str, Any] | None = _KEEP,
    temporal_pooling: int | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> tuple[BimbaForConditionalGeneration, BimbaProcessor]:
    """A model and its processor, from any checkpoint that :mod:`bimba.checkpoint.source` recognises.

    Args:
        path_or_name: a folder, a shipped checkpoint ("bimba-tiny"), or a model on the Hugging Face hub ("org/name").
        base: where the base of an adapter lies; None: where its ``adapter_config.json`` says.
        merge: fold an adapter into the weights; False keeps it as live peft layers.
        compressor: the compressor to build instead of the checkpoint's; one of the same name and options (but for
            ``reduction``, ``scan_backend``, ``chunk_tokens`` and ``backward_init``) keeps its weights, any other starts
            fresh (``mamba``: as the identity on the queries). The original's checkpoints without one (LLaVA-Video) get
            a fresh ``mamba`` unless told otherwise; None: none.
        temporal_pooling: overrides the checkpoint's; an error if the compressor has another ``reduction``.
        dtype: of the weights; None: as stored.
        device: where to put the model; None: the CPU; "auto": spread over what there is, by accelerate.

    Raises:
        BimbaError: no such checkpoint, or weights that are missing, unexpected, unreadable or of another size.
    """
    source = _open(path_or_name, base, merge, compressor, temporal_pooling)
    model = _build(source, source.tensors, resolve_dtype(dtype) or source.dtype, device)
    if source.adapter is not None:
        source.adapter.inject(model)
    return model.eval(), source.processor


def outline_pretrained(
    path_or_name: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    compressor: Mapping[str, Any] | None = _KEEP,
    temporal_pooling: int | None = None,
    dtype: torch.dtype | str | None = None,
) -> tuple[BimbaForConditionalGeneration, BimbaProcessor, dict[str, Stored]]:
    """As :func:`load_pretrained`, but the stored weights stay in their files, for whoever keeps parts of them only.

    Those of the model take no memory: each is one zero, shown at every place. What is not stored (a fresh compressor,
    buffers) is there as ``load_pretrained`` would have it.

    Returns:
        The model, its processor, and the stored tensors by the names of the model's weights; of an adapter, merged.

    Raises:
        BimbaError: see :func:`load_pretrained`.
    """
    source = _open(path_or_name, base, True, compressor, temporal_pooling)
    wanted = resolve_dtype(dtype) or source.dtype
    outlines = {name: _Outline(stored, wanted) for name, stored in source.tensors.items()}
    return _build(source, outlines, wanted, None).eval(), source.processor, source.tensors


@dataclass(frozen=True)
class _Outline:
    """A tensor of zeros in the shape of a stored one; the memory is that of one number."""

    whole: Stored
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape

    @property
    def file(self) -> str:
        return self.whole.file

    def __getitem__(self, all_of_it: EllipsisType) -> torch.Tensor:
        return torch.zeros((), dtype=self.dtype).expand(self.shape)


def _open(
    path_or_name: str | os.PathLike[str],
    base: str | os.PathLike[str] | None,
    merge: bool,
    compressor: Mapping[str, Any] | None,
    temporal_pooling: int | None,
) -> Source:
    """The checkpoint as its caller wants it, checked; no weight is read."""
    source = open_checkpoint(path_or_name, base=base, merge=merge)
    if compressor is _KEEP and not source.is_ours and source.config.compressor is None:
        compressor = original.COMPRESSOR  # LLaVA-Video is the base of BIMBA, which a fresh compressor makes of it
    fresh = None if compressor is _KEEP else _set_compressor(source, compressor)
    if temporal_pooling is not None:
        source.set_temporal_pooling(temporal_pooling)
    source.check(fresh)
    return source


def _build(
    source: Source, tensors: Mapping[str, Stored], dtype: torch.dtype, device: torch.device | str | None
) -> BimbaForConditionalGeneration:
    with _quiet_transformers():  # check has said what is missing, and more strictly
        model: BimbaForConditionalGeneration = BimbaForConditionalGeneration.from_pretrained(
            None,
            config=source.config,
            state_dict=dict(tensors),
            dtype=dtype,
            device_map=device if device in (None, "auto") else resolve_device(device),
        )
    if source.generation_config is not None:
        model.generation_config = source.generation_config
    return model


def _set_compressor(source: Source, wanted: Mapping[str, Any] | None) -> str | None:
    """Asks for another compressor. Returns the prefix of its weights if they start fresh, None if they are kept."""
    wanted = None if wanted is None else dict(wanted)
    tried = build_compressor(wanted, hidden_size=8)  # says early what is wrong with it
    keep = what_it_computes(wanted) == what_it_computes(source.config.compressor)
    source.config.compressor = wanted
    source.processor.reduction = reduction_of(wanted)
    _ = source.config.reduction  # raises where it does not fit the grid
    if keep:
        return None
    source.tensors = {name: t for name, t in source.tensors.items() if not name.startswith(_COMPRESSOR)}
    if tried is not None and any(True for _ in tried.parameters()):
        log.info("The compressor starts fresh, as the identity on the pooled queries where it can.")
    return _COMPRESSOR


def save_pretrained(
    model: BimbaForConditionalGeneration, processor: BimbaProcessor, folder: str | os.PathLike[str]
) -> None:
    """Writes model, processor and model card; the folder appears whole or not at all.

    Live LoRA adapters are merged into the weights that are written; ``model`` itself keeps them.

    Args:
        folder: does not exist yet, is empty, or holds an older checkpoint in our format, which is replaced.

    Raises:
        BimbaError: something else is there, an adapter that cannot be merged, or writing fails.
    """
    with whole_folder(folder, replace=True) as partial, _quiet_transformers():
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        write_card(model.config, partial)


def write_pretrained(
    model: BimbaForConditionalGeneration,
    processor: BimbaProcessor,
    tensors: Mapping[str, Stored],
    folder: str | os.PathLike[str],
) -> None:
    """As :func:`save_pretrained`, of weights that are read one file at a time as they are written.

    Args:
        tensors: what to write instead of the weights of ``model``; tensors of the same ``file`` go into one file.

    Raises:
        BimbaError: see :func:`save_pretrained`.
    """
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    with whole_folder(folder, replace=True) as partial, _quiet_transformers():
        config.save_pretrained(partial)
        processor.save_pretrained(partial)
        write_card(config, partial)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(partial)
        write_weights(tensors, partial)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    level, bars = logging_utils.get_verbosity(), logging_utils.is_progress_bar_enabled()
    logging_utils.set_verbosity_error()
    logging_utils.disable_progress_bar()
    try:
        yield
    finally:
        logging_utils.set_verbosity(level)
        if bars:
            logging_utils.enable_progress_bar()
