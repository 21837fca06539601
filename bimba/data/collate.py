"""Samples to a batch: right padding, and unreadable samples set aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from bimba.data.tokenize import IGNORE_INDEX
from bimba.types import BadSample, Batch


def collate(samples: Sequence[Mapping[str, Any] | BadSample], pad_token_id: int) -> Batch:
    """Pads to the longest sample.

    Args:
        samples: what ``VideoQADataset`` returns: per sample ``input_ids`` (L,), ``labels`` (L,), media and what is said
            of it, or a ``BadSample``. Media of a kind that a sample has none of may be missing.
        pad_token_id: fills ``input_ids`` to the right; attention and labels leave it out.

    Returns:
        A ``Batch`` of the readable samples, with the others listed in ``bad_samples``. When there is none to read,
        ``bad_samples`` is its only key.
    """
    bad = [sample for sample in samples if isinstance(sample, BadSample)]
    good = [sample for sample in samples if not isinstance(sample, BadSample)]
    if not good:
        return {"bad_samples": bad}
    return {
        "input_ids": pad_sequence([s["input_ids"] for s in good], batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(s["input_ids"]) for s in good], batch_first=True),
        "labels": pad_sequence([s["labels"] for s in good], batch_first=True, padding_value=IGNORE_INDEX),
        "pixel_values_videos": [video for s in good for video in s.get("pixel_values_videos", [])],
        "pixel_values_images": [image for s in good for image in s.get("pixel_values_images", [])],
        "image_sizes": [size for s in good for size in s.get("image_sizes", [])],
        "ids": [s.get("id", "") for s in good],
        "sources": [s.get("source", "") for s in good],
        "modalities": [s.get("modality", "") for s in good],
        "bad_samples": bad,
    }
