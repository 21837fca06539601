"""[6] A short name for what a model computes: the same for equal weights and settings, wherever they came from.

Every bit of every weight counts. Sums of integers are exact, so a device gives the same name as any other, and a GPU
reads 15 GB for it in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.processor import BimbaProcessor

_CHUNK = 1 << 22  # values at a time, so that the sums need little memory
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LANGUAGE_MODEL = "language_model."


@torch.inference_mode()
def fingerprint(model: BimbaForConditionalGeneration, processor: BimbaProcessor, of_tokens: bool = False) -> str:
    """64 hexadecimal digits.

    Args:
        of_tokens: only what the tokens of a video depend on; checkpoints that differ in their language model share it.
    """
    config = model.config.to_dict()
    for unread in ("original_config", "_name_or_path", "transformers_version"):
        config.pop(unread, None)
    if not model.question_conditioned:
        for unread in ("turn_start_token_id", "turn_end_token_id"):
            config.pop(unread)
    settings: dict[str, Any] = {
        "config": config,
        "transform": [processor.image_backend, processor.image_processor.to_dict()],
        "temporal_pooling": processor.temporal_pooling,
        "device": model.device.type,  # kernels differ by rounding
    }
    if of_tokens:
        config.pop("text_config")
    else:
        settings["generation_config"] = model.generation_config.to_dict()
        settings["newline_after_medium"] = processor.newline_after_medium
        settings["vocabulary"] = processor.tokenizer.get_vocab()
    total = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not (of_tokens and name.startswith(_LANGUAGE_MODEL)):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {_checksum(tensor)}".encode())
    return total.hexdigest()


def _checksum(tensor: Tensor) -> tuple[int, int]:
    """The sum of a tensor's bits, read as integers, and the sum weighted by position; both modulo 2^64."""
    values = tensor.detach().contiguous().flatten().view(_INTEGERS[tensor.element_size()])
    plain = weighted = 0
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK].long()
        positions = torch.arange(start + 1, start + 1 + len(chunk), device=chunk.device)
        plain += int(chunk.sum())
        weighted += int((chunk * (positions * 2654435761)).sum())  # spread over all 64 bits
    return plain % 2**64, weighted % 2**64
