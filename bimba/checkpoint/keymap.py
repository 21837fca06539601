"""Parameter names: ours on the left, the original's on the right. One table, read in both directions."""

from __future__ import annotations

import re

# (our prefix, the original's prefix). No prefix of one side begins another of the same side.
KEYMAP = (
    ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("projector.", "model.mm_projector."),
    ("image_newline", "model.image_newline"),
    ("compressor.", "model.compressor."),
    ("language_model.model.embed_tokens.", "model.embed_tokens."),
    ("language_model.model.layers.", "model.layers."),
    ("language_model.model.norm.", "model.norm."),
    ("language_model.lm_head.", "lm_head."),
)

# Tensors of original checkpoints that are no weights of the function: what older releases of transformers stored
# although it is computed, and SigLIP's pooling head, which LLaVA-Video replaces by nothing.
IGNORED = re.compile(r"\.rotary_emb\.inv_freq$|\.position_ids$|\.vision_model\.head\.")

# What peft puts in front of every name of the model it wraps.
PEFT_PREFIX = "base_model.model."


def to_ours(name: str) -> str | None:
    """Our name for a parameter of the original; None if it has no such parameter."""
    return next((ours + name[len(theirs) :] for ours, theirs in KEYMAP if name.startswith(theirs)), None)


def to_original(name: str) -> str | None:
    """The original's name for one of our parameters; None if we have no such parameter."""
    return next((theirs + name[len(ours) :] for ours, theirs in KEYMAP if name.startswith(ours)), None)


def is_ignored(name: str) -> bool:
    """Whether a tensor of an original checkpoint is left out on purpose."""
    return IGNORED.search(name) is not None
