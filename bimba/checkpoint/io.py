"""Our own format: ``config.json``, ``model.safetensors`` and the processor's files in one folder."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as logging_utils

from bimba.checkpoint.merge import merged_state_dict
from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.compressor import build_compressor, complete
from bimba.model.config import BimbaConfig
from bimba.model.processor import BimbaProcessor
from bimba.types import BimbaError

log = logging.getLogger(__name__)

SHIPPED = {"bimba-tiny": "bimba_tiny"}
_KEEP: Any = object()


def checkpoint_folder(path_or_name: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint, which may be named by path or by the name of one that ships in the package.

    Raises:
        BimbaError: there is no such folder, or it holds no checkpoint of ours.
    """
    if str(path_or_name) in SHIPPED:
        folder = Path(str(files("bimba"))) / "assets" / SHIPPED[str(path_or_name)]
    else:
        folder = Path(path_or_name)
    if not folder.is_dir():
        raise BimbaError(
            f"There is no checkpoint folder {folder}; give the `checkpoint` folder of a training run, "
            f"or a shipped checkpoint: {', '.join(SHIPPED)}."
        )
    try:
        model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    except FileNotFoundError:
        raise BimbaError(
            f"The folder {folder} is not a checkpoint: it has no config.json (it holds: {_listing(folder)}). "
            "Give the folder that save_pretrained wrote, such as outputs/<run>/checkpoint."
        ) from None
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError) as error:
        raise BimbaError(
            f"{folder / 'config.json'} is not a JSON object ({error}); copy the checkpoint again."
        ) from error
    if model_type != "bimba":
        raise BimbaError(f"The checkpoint {folder} is of model type {model_type!r}; expected 'bimba'.")
    return folder


def load_pretrained(
    path_or_name: str | os.PathLike[str],
    *,
    compressor: Mapping[str, Any] | None = _KEEP,
    temporal_pooling: int | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> tuple[BimbaForConditionalGeneration, BimbaProcessor]:
    """A model and its processor.

    Args:
        path_or_name: a folder written by :func:`save_pretrained`, or a shipped checkpoint ("bimba-tiny").
        compressor: the compressor to build instead of the checkpoint's; one of the same name and options (but for
            ``scan_backend``) keeps its weights, any other starts fresh (``mamba``: as the identity on the queries).
        temporal_pooling: overrides the checkpoint's.
        dtype: of the weights; None: as stored.
        device: where to put the model; None: the CPU.

    Raises:
        BimbaError: no such checkpoint, or weights that are missing, unexpected, unreadable or of another size.
    """
    folder = checkpoint_folder(path_or_name)
    config = BimbaConfig.from_pretrained(folder)
    if temporal_pooling is not None:
        if temporal_pooling < 1:
            raise BimbaError(f"temporal_pooling is {temporal_pooling}; expected 1 or more frames.")
        config.temporal_pooling = temporal_pooling

    try:
        with _quiet_transformers():  # _check_keys says what is missing, and more strictly
            loaded: Any = BimbaForConditionalGeneration.from_pretrained(
                folder, config=config, dtype=dtype or "auto", output_loading_info=True, ignore_mismatched_sizes=True
            )
        model, info = loaded
        processor = BimbaProcessor.from_pretrained(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise BimbaError(f"The checkpoint {folder} cannot be loaded: {error}") from error
    _check_keys(folder, info)
    if compressor is not _KEEP:
        _set_compressor(model, None if compressor is None else dict(compressor))
    processor.temporal_pooling = config.temporal_pooling
    return model.to(device or "cpu").eval(), processor


def _replace(folder: Path, partial: Path) -> None:
    """Puts ``partial`` in place of ``folder``, which may exist."""
    if not folder.exists():
        os.replace(partial, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.replace(folder, old / folder.name)
    try:
        os.replace(partial, folder)
    except BaseException:
        os.replace(old / folder.name, folder)
        raise
    finally:
        shutil.rmtree(old)


def _set_compressor(model: BimbaForConditionalGeneration, wanted: dict[str, Any] | None) -> None:
    """Gives ``model`` the compressor that was asked for; its weights are kept if they mean the same there."""
    old, stored = model.compressor, model.config.compressor
    new = build_compressor(wanted, model.config.text_config.hidden_size)
    if new is not None and old is not None and _weights_meaning(wanted) == _weights_meaning(stored):
        new.load_state_dict(old.state_dict())
    elif new is not None and any(True for _ in new.parameters()):
        log.info("The compressor starts fresh, as the identity on the pooled queries where it can.")
    model.compressor = None if new is None else new.to(model.dtype)
    model.config.compressor = wanted


def _weights_meaning(compressor: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options that say what a compressor's weights compute: all but where the scan runs."""
    return {key: value for key, value in complete(compressor or {}).items() if key != "scan_backend"}


def save_pretrained(
    model: BimbaForConditionalGeneration, processor: BimbaProcessor, folder: str | os.PathLike[str]
) -> None:
    """Writes model and processor; the folder appears whole or not at all, and an older one is replaced.

    Live LoRA adapters are merged into the weights that are written; ``model`` itself keeps them.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        model.save_pretrained(partial, state_dict=merged_state_dict(model))
        processor.save_pretrained(partial)
        partial.chmod(0o755)  # temporary folders and safetensors' files are private; a checkpoint is not
        for file in partial.iterdir():
            file.chmod(0o644)
        _replace(folder, partial)
    except BaseException:  # an interrupted save leaves nothing half-written behind
        shutil.rmtree(partial, ignore_errors=True)
        raise


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


def _check_keys(folder: Path, info: Mapping[str, Any]) -> None:
    """Loads are strict: every tensor of the model is in the file, and every tensor of the file in the model."""
    wrong = {kind: sorted(map(str, info.get(f"{kind}_keys", ()))) for kind in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):
        details = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in wrong.items() if keys)
        raise BimbaError(f"The weights in {folder} do not fit its config.json ({details}). Copy the checkpoint again.")


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
