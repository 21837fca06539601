"""Step [5]: compressed tokens into the prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from bimba.types import BimbaError


def num_video_tokens(num_groups: int, rows: int, columns: int, newline_position: str) -> int:
    """How many tokens :func:`add_newlines` makes of a (T', H', W') grid."""
    newlines = {"grid": num_groups * rows, "frame": num_groups, "one_token": 1, "no_token": 0}[newline_position]
    return num_groups * rows * columns + newlines


def add_newlines(tokens: Tensor, newline: Tensor, position: str) -> Tensor:
    """Writes the newline token into a video's grid, and the grid into a line.

    Args:
        tokens: (T', H', W', C) compressed tokens.
        newline: (C,) the learned ``image_newline``.
        position: see :class:`~bimba.model.config.BimbaConfig`.

    Returns:
        (tokens, C).
    """
    newline = newline.to(tokens.device)  # with device_map another device than the compressor's
    match position:
        case "grid":
            breaks = newline.expand(*tokens.shape[:2], 1, -1)
            return torch.cat([tokens, breaks], dim=2).flatten(0, 2)
        case "frame":
            breaks = newline.expand(tokens.shape[0], 1, -1)
            return torch.cat([tokens.flatten(1, 2), breaks], dim=1).flatten(0, 1)
        case "one_token":
            return torch.cat([tokens.flatten(0, 2), newline[None]])
        case _:
            return tokens.flatten(0, 2)


def splice(inputs_embeds: Tensor, is_placeholder: Tensor, tokens: list[Tensor], medium: str = "video") -> Tensor:
    """Puts the tokens of the videos, or of the images, in place of the prompt's placeholders for them.

    Args:
        inputs_embeds: (B, L, C).
        is_placeholder: (B, L) bool, True at placeholders.
        tokens: one (tokens, C) tensor per video or image, in order of appearance.
        medium: what they are, for the error's words: "video" or "image".

    Returns:
        (B, L, C).

    Raises:
        BimbaError: the number of placeholders is not the number of tokens.
    """
    expected, received = int(is_placeholder.sum()), sum(len(one) for one in tokens)
    if expected != received:
        same = {"video": "number of frames as the pixel values have", "image": "image sizes as the model is given"}
        raise BimbaError(
            f"The prompt has {expected} {medium} placeholder tokens, but its {len(tokens)} {medium}(s) make {received} "
            f"tokens. Build the prompt with BimbaProcessor and the same {same[medium]}."
        )
    if not tokens:
        return inputs_embeds
    spliced = torch.cat(tokens).to(inputs_embeds.device, inputs_embeds.dtype)
    return inputs_embeds.masked_scatter(is_placeholder[..., None], spliced)
