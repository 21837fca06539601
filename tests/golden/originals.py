"""The original's tiny checkpoints, what it computed with them, and the same prompts for our model.

A prompt of the original has one ``-200`` per medium, which its model replaces; ours has as many placeholders as the
medium makes tokens.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bimba.checkpoint import load_pretrained
from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.processor import BimbaProcessor

GOLDEN = Path(__file__).parent / "model"
BASE = GOLDEN / "ckpt_56_base_nocompressor"  # stands for LLaVA-Video
MEDIUM, IGNORED = -200, -100

# Absolute, in float32; gradients relative to the largest entry of their tensor.
TOLERANCE = {
    "vision_tower_out": 2e-5,
    "projector_out": 2e-5,
    "pooled_queries": 2e-5,
    "compressor_out": 1e-4,
    "video_tokens_with_newline": 1e-4,
    "inputs_embeds": 1e-4,
    "logits": 1e-4,
    "loss": 1e-5,
    "gradient": 2e-5,
}


@cache
def full_checkpoint() -> Path:
    """The folder ``ckpt_56_bimba``, byte for byte: only its compressor is stored, the other weights are ``BASE``'s."""
    stored = GOLDEN / "ckpt_56_bimba"
    folder = Path(tempfile.mkdtemp(prefix="bimba-test-golden-")) / stored.name
    atexit.register(shutil.rmtree, folder.parent)
    shutil.copytree(stored, folder, ignore=shutil.ignore_patterns("compressor.safetensors"))
    weights = load_file(BASE / "model.safetensors") | load_file(stored / "compressor.safetensors")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@dataclass(frozen=True)
class Case:
    """One run of the original.

    Attributes:
        meta: which checkpoint, pixels and options.
        tensors: what went in and what came out.
    """

    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def pixels(self, row: int) -> Tensor:
        """(T or tiles, 3, height, width): the one medium of a sample."""
        where = self.meta["pixel_values"][row]
        return _pixels()[where["tensor"]][where["start"] : where["end"]].float()

    def model(self) -> tuple[BimbaForConditionalGeneration, BimbaProcessor]:
        """The original's checkpoint under the options of this run."""
        compressor = {} if self.meta["compressor_type"] == "bimba" else {"compressor": None}
        folder = full_checkpoint() if self.meta["checkpoint"] == "ckpt_56_bimba" else GOLDEN / self.meta["checkpoint"]
        model, processor = load_pretrained(folder, temporal_pooling=self.meta["temporal_pooling"], **compressor)
        position = self.meta.get("mm_newline_position", "grid")
        model.config.newline_position = processor.newline_position = position
        return model, processor


def read_case(name: str) -> Case:
    with safe_open(GOLDEN / f"golden_{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return Case(json.loads(file.metadata()["meta"]), tensors)


@cache
def _pixels() -> dict[str, Tensor]:
    return load_file(GOLDEN / "inputs.safetensors")


def model_inputs(case: Case, processor: BimbaProcessor) -> dict[str, Any]:
    """The case's prompts as our model takes them, right-padded; with ``labels`` if the case has any."""
    rows, labels, media = [], [], {"pixel_values_videos": [], "pixel_values_images": [], "image_sizes": []}
    given_labels = case.tensors.get("in.labels", torch.full_like(case["in.input_ids"], IGNORED))
    attended = case.tensors.get("in.attention_mask", torch.ones_like(case["in.input_ids"], dtype=torch.bool))
    for row, mask in enumerate(attended):
        ids, targets = case["in.input_ids"][row][mask], given_labels[row][mask]
        if (ids == MEDIUM).any():
            token, count = _add_medium(case, row, processor, media)
            place = int((ids == MEDIUM).nonzero())
            ids = torch.cat([ids[:place], torch.full((count,), token), ids[place + 1 :]])
            targets = torch.cat([targets[:place], torch.full((count,), IGNORED), targets[place + 1 :]])
        rows.append(ids)
        labels.append(targets)
    pad = torch.nn.utils.rnn.pad_sequence
    inputs = {
        "input_ids": pad(rows, batch_first=True),
        "attention_mask": pad([torch.ones_like(ids) for ids in rows], batch_first=True),
        **{name: items for name, items in media.items() if items},
    }
    if "in.labels" in case.tensors:
        inputs["labels"] = pad(labels, batch_first=True, padding_value=IGNORED)
    return inputs


def _add_medium(case: Case, row: int, processor: BimbaProcessor, media: dict[str, list]) -> tuple[int, int]:
    """Puts the medium of a sample into ``media``; its placeholder and how often it stands in the prompt."""
    pixels = case.pixels(row)
    if case.meta["modalities"][row] == "video":
        media["pixel_values_videos"].append(pixels)
        return processor.video_token_id, processor.num_video_tokens(len(pixels))
    size = case.meta["image_sizes"][row]
    media["pixel_values_images"].append(pixels)
    media["image_sizes"].append(size)
    # A single tile is an image that was not cut: its patches and one newline.
    count = processor.num_image_tokens(size) if len(pixels) > 1 else processor.patch_grid**2 + 1
    return processor.tokenizer.convert_tokens_to_ids(processor.image_token), count


def deviation(received: Tensor, expected: Tensor) -> float:
    """The largest absolute difference."""
    assert received.shape == expected.shape, f"{tuple(received.shape)} instead of {tuple(expected.shape)}"
    return float((received.float() - expected.float()).abs().max())
