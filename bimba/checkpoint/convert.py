"""From one folder layout to another, one shard in memory at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file

from bimba.checkpoint import original, original_tokenizer
from bimba.checkpoint.card import write_card
from bimba.checkpoint.folder import check_destination, whole_folder
from bimba.checkpoint.keymap import to_original
from bimba.checkpoint.source import Source, open_checkpoint
from bimba.checkpoint.tensors import INDEX, SINGLE, Stored
from bimba.types import BimbaError

LAYOUTS = ("bimba", "original")


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: str = "bimba",
    base: str | os.PathLike[str] | None = None,
    temporal_pooling: int | None = None,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes a checkpoint in another layout; an adapter is merged into its base.

    Tensors keep their type and, unless an adapter changes them, every bit. They stay in the shard they came in, so
    the memory this takes is about that of the largest shard; to merge an adapter, its files and one layer's weight in
    float32 come on top.

    From the original's layout to ours and back, the weights, their index, ``config.json`` and the vocabulary files
    (``vocab.json``, ``merges.txt``, ``added_tokens.json``, ``special_tokens_map.json``, ``tokenizer_config.json``) are
    byte for byte what they were. ``generation_config.json`` is rewritten with the same settings, ``tokenizer.json`` is
    not written: the original reads the vocabulary files.

    Args:
        source: any checkpoint that ``load_pretrained`` takes.
        destination: a folder that does not exist yet, or is empty. It appears whole or not at all.
        to: "bimba" (ours) or "original" (LLaVA-Video's, which the original implementation loads).
        base: where the base of an adapter lies.
        temporal_pooling: overrides the checkpoint's.
        on_shard: called with (written, total) after each shard.

    Raises:
        BimbaError: an unreadable source, an occupied destination, one that cannot be written to, or a model that the
            original's layout cannot hold.
    """
    if to not in LAYOUTS:
        raise BimbaError(f"Unknown checkpoint layout {to!r}; expected one of: {', '.join(LAYOUTS)}.")
    check_destination(destination)  # before anything is downloaded
    opened = open_checkpoint(source, base=base)
    if temporal_pooling is not None:
        opened.set_temporal_pooling(temporal_pooling)
    opened.check()
    with whole_folder(destination) as partial:
        if to == "original":
            _write_original(opened, partial)
            tensors = {str(to_original(name)): stored for name, stored in opened.tensors.items()}
        else:
            _write_ours(opened, partial)
            tensors = opened.tensors
        write_weights(tensors, partial, on_shard)


def _write_ours(source: Source, folder: Path) -> None:
    source.config.architectures = ["BimbaForConditionalGeneration"]
    source.config.dtype = source.dtype
    source.config.save_pretrained(folder)
    source.processor.save_pretrained(folder)
    write_card(source.config, folder)
    if source.generation_config is not None:
        source.generation_config.save_pretrained(folder)


def _write_original(source: Source, folder: Path) -> None:
    original.write_config(source.config, str(source.dtype).removeprefix("torch."), folder)
    original_tokenizer.write_tokenizer(source.processor.tokenizer, folder)
    if source.generation_config is not None:
        source.generation_config.save_pretrained(folder)


def write_weights(
    tensors: Mapping[str, Stored], folder: Path, on_shard: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Writes ``model.safetensors``, or the same shards that the tensors come from and their index."""
    shards = _shards(tensors)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = [SINGLE] if len(shards) == 1 else names
    total_bytes = 0
    for number, (name, shard) in enumerate(zip(names, shards), start=1):
        content = {key: stored[...].contiguous() for key, stored in shard.items()}
        total_bytes += sum(tensor.nbytes for tensor in content.values())
        save_file(content, folder / name, metadata={"format": "pt"})
        del content  # before the next shard is read
        on_shard(number, len(shards))
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards) for key in shard}
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _shards(tensors: Mapping[str, Stored]) -> list[dict[str, Stored]]:
    """The tensors by the shard they came in; those of an adapter's ``.bin`` file join the last."""
    shards: dict[str, dict[str, Stored]] = {}
    for name, stored in sorted(tensors.items(), key=lambda item: item[1].file):
        if stored.file.endswith(".safetensors"):
            shards.setdefault(stored.file, {})[name] = stored
    others = {name: stored for name, stored in tensors.items() if not stored.file.endswith(".safetensors")}
    *before, last = shards.values()
    return [*before, {**last, **others}]
