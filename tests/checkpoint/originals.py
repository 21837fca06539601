"""The original's tiny checkpoints in tests/golden, and copies of them to break."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from bimba.checkpoint.tensors import INDEX, SINGLE
from tests.golden.originals import BASE as BASE
from tests.golden.originals import GOLDEN, full_checkpoint

FULL = full_checkpoint()
ADAPTER = GOLDEN / "lora/bimba-lora-qwen-ckpt"


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / folder.name))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def shard(folder: Path, parts: int = 3) -> list[Path]:
    """Splits a folder's weights into shards with an index, as large checkpoints come."""
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = [f"model-{i + 1:05d}-of-{parts:05d}.safetensors" for i in range(parts)]
    weight_map = {key: names[i * parts // len(weights)] for i, key in enumerate(sorted(weights))}
    for name in names:
        save_file({k: weights[k] for k in weight_map if weight_map[k] == name}, folder / name, {"format": "pt"})
    size = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return [folder / name for name in names]
