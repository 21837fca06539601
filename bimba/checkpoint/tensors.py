"""Tensor files, read one tensor at a time and never trusted.

safetensors files are mapped into memory, so a tensor takes none before it is read. ``.bin`` files are pickles: they go
through ``torch.load(weights_only=True)``, which builds tensors and runs nothing.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bimba.checkpoint.errors import FETCH_AGAIN
from bimba.types import BimbaError, first_line

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LFS = b"version https://git-lfs"
_PULL = "Run `git lfs pull` in its repository."

# What torch's reader trips over in a damaged pickle or archive.
_DAMAGED = (
    pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, OSError, ValueError, EOFError, LookupError, TypeError,
    AttributeError, AssertionError, struct.error,
)  # fmt: skip
_LONGEST_HEADER = 100 * 1024**2  # bytes, as the safetensors format has it


class Stored(Protocol):
    """A tensor that is still in its file; ``stored[...]`` reads it, as a slice of the safetensors library does."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def file(self) -> str:
        """Name of the file it is in."""
        ...

    def __getitem__(self, all_of_it: EllipsisType) -> Tensor: ...


@dataclass(frozen=True)
class InSafetensors:
    """A tensor of a safetensors file. The file is open only while it is read: what is kept is one tensor's memory."""

    path: Path
    name: str
    shape: tuple[int, ...]

    @property
    def file(self) -> str:
        return self.path.name

    def __getitem__(self, all_of_it: EllipsisType) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(self.name)
        return tensor


@dataclass(frozen=True)
class InMemory:
    """A tensor that was read already."""

    tensor: Tensor
    file: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def __getitem__(self, all_of_it: EllipsisType) -> Tensor:
        return self.tensor


@dataclass(frozen=True)
class FirstRows:
    """The first rows of a tensor."""

    whole: Stored
    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, *self.whole.shape[1:])

    @property
    def file(self) -> str:
        return self.whole.file

    def __getitem__(self, all_of_it: EllipsisType) -> Tensor:
        return self.whole[...][: self.rows].clone()


def model_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of ``model.safetensors``, or of the shards that its index names.

    Raises:
        BimbaError: no weights there, a shard is missing, or a file is damaged or no tensor file.
    """
    if (folder / SINGLE).exists():
        return safetensors_tensors(folder / SINGLE)
    weight_map = _weight_map(folder)
    tensors: dict[str, Stored] = {}
    for shard in sorted(set(weight_map.values())):
        tensors |= safetensors_tensors(folder / shard)
    astray = sorted(name for name, shard in weight_map.items() if name not in tensors or tensors[name].file != shard)
    astray += sorted(tensors.keys() - weight_map.keys())
    if astray:
        raise BimbaError(
            f"The shards in {folder} do not hold what {INDEX} says; it is wrong about: {listing(astray)}. {FETCH_AGAIN}"
        )
    return tensors


def safetensors_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file.

    Raises:
        BimbaError: no such file, or not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise BimbaError(_what_is_wrong(path, error)) from error
    return {name: InSafetensors(path, name, shape) for name, shape in shapes.items()}


def binary_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a ``.bin`` file; nothing in it is executed.

    Raises:
        BimbaError: no such file, damaged, or it holds anything but named tensors.
    """
    try:
        mapped = zipfile.is_zipfile(path)  # all but files of torch before 1.6, which cannot be mapped into memory
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _DAMAGED as error:
        raise BimbaError(_what_is_wrong(path, error)) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BimbaError(f"{path} holds something else than named tensors; expected a state dict. {FETCH_AGAIN}")
    return {str(name): InMemory(tensor, path.name) for name, tensor in content.items()}


def has_model(folder: Path) -> bool:
    """Whether a folder holds the weights of a model, whatever their names are."""
    return (folder / SINGLE).exists() or (folder / INDEX).exists()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BimbaError: no such file, or no JSON object in it.
    """
    try:
        text = path.read_bytes()
        if text.startswith(_LFS):
            raise BimbaError(f"{path} is a Git LFS pointer, not the file. {_PULL}")
        content = json.loads(text)
    except OSError as error:
        raise BimbaError(f"{path} cannot be read ({error.strerror}); {_holds(path.parent)}. {FETCH_AGAIN}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BimbaError(f"{path} is not a JSON object ({error}). {FETCH_AGAIN}") from error
    if not isinstance(content, dict):
        raise BimbaError(f"{path} is not a JSON object but a {type(content).__name__}. {FETCH_AGAIN}")
    return content


def write_json(path: Path, content: dict[str, Any], *, sort: bool = True) -> None:
    """As the original writes JSON, byte for byte."""
    path.write_text(json.dumps(content, indent=2, sort_keys=sort, ensure_ascii=False) + "\n", encoding="utf-8")


def listing(names: list[str], most: int = 12) -> str:
    """Names for a message, the first of many."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, and {len(names) - most} more"


def _holds(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return f"the folder holds: {listing(names, 5) or 'nothing'}"


def _weight_map(folder: Path) -> dict[str, str]:
    """Which shard holds which tensor, from the index."""
    if not (folder / INDEX).exists():
        raise BimbaError(
            f"There are no weights in {folder}: neither {SINGLE} nor {INDEX}; {_holds(folder)}. {FETCH_AGAIN}"
        )
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise BimbaError(f"{folder / INDEX} has no 'weight_map' of tensors to files. {FETCH_AGAIN}")
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise BimbaError(
                f"{folder / INDEX} names the file {shard!r}; expected a .safetensors file beside it. Do not load this "
                "checkpoint unless you know who made it."
            )
        if not (folder / shard).exists():
            count = sum(name == shard for name in weight_map.values())
            raise BimbaError(f"{folder / shard} is missing; {INDEX} says it holds {count} tensors. {FETCH_AGAIN}")
    return weight_map


def _what_is_wrong(path: Path, error: Exception) -> str:
    """Why a tensor file cannot be read, in words."""
    if not path.exists():
        return f"{path}: there is no such file; {_holds(path.parent)}. {FETCH_AGAIN}"
    if not path.is_file():
        return f"{path}: a folder or a device; expected a file of tensors. {FETCH_AGAIN}"
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(len(_LFS))
    if head == _LFS:
        return f"{path} is a Git LFS pointer, not the weights. {_PULL}"
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error).lower():
        return (
            f"{path} holds Python objects other than tensors, or is no torch file; loading those could run code, so "
            "nothing in it was executed. Do not load this checkpoint unless you know who made it."
        )
    if path.suffix == ".safetensors":
        header = int.from_bytes(head[:8], "little")
        if size < 8 or header > _LONGEST_HEADER:
            return (
                f"{path} is no safetensors file: its header would be {header:,} bytes long (the file is {size:,}; at "
                f"most {_LONGEST_HEADER:,} are allowed). {FETCH_AGAIN}"
            )
        needed = 8 + header + _data_bytes(path, header)
        if size < needed:
            return f"{path} is truncated: {size:,} bytes of at least {needed:,}. {FETCH_AGAIN}"
    reason = first_line(error).split(" (at ")[0]  # torch adds where in its C++ sources
    return f"{path} cannot be read ({size:,} bytes): {reason}. {FETCH_AGAIN}"


def _data_bytes(path: Path, header_bytes: int) -> int:
    """How many bytes of data a safetensors header asks for; 0 if the header cannot be read."""
    with path.open("rb") as file:
        file.seek(8)
        try:
            header = json.loads(file.read(header_bytes))
            return max((int(e["data_offsets"][1]) for name, e in header.items() if name != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return 0
