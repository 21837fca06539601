"""Step [4]: what the two mixers that scan have once per direction: names, start, numbers that stay wide, and stacked.

The backward direction's parameters are called ``*_b`` as in the original: ``conv1d_b``, ``dt_proj_b``, ``A_b_log``,
``D_b``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# The scan takes these in float32 whatever the model's dtype, so casting a model to 16 bits must not round them.
IN_FLOAT32 = ("A_log", "A_b_log", "D", "D_b", "dt_proj.bias", "dt_proj_b.bias")


@dataclass(frozen=True)
class Direction:
    """The parameters of one direction that every mixer has."""

    conv1d: Any  # nn.Conv1d, with a bias
    dt_proj: nn.Linear
    A_log: nn.Parameter
    D: nn.Parameter


@dataclass(frozen=True)
class Directions:
    """The parameters of R directions that scan together; a mixer adds its own."""

    conv: Tensor  # (R, channels, W)
    conv_bias: Tensor  # (R, channels)
    dt_bias: Tensor  # (R, D), or (R, H) of Mamba-2's heads
    A: Tensor  # (R, D, N), or (R, H)
    D: Tensor  # (R, D), or (R, H)
    reverse: bool  # direction 0 goes from the last token to the first


def of_mixer(mixer: nn.Module, bidirectional: bool) -> Iterator[Direction]:
    """Of a mixer the forward direction, and if there is one the backward."""
    for suffix in ("", "_b")[: 1 + bidirectional]:
        conv1d: Any = mixer.get_submodule(f"conv1d{suffix}")
        dt_proj: Any = mixer.get_submodule(f"dt_proj{suffix}")
        yield Direction(conv1d, dt_proj, mixer.get_parameter(f"A{suffix}_log"), mixer.get_parameter(f"D{suffix}"))


def stacked(mixer: nn.Module, numbers: tuple[int, ...]) -> dict[str, Any]:
    """The fields of ``Directions`` for direction 0 (forward), 1 (backward), or both.

    A, D and the step's bias enter the scan in float32 whatever the model's dtype; the bias joins inside the scan.
    """
    chosen = [direction for i, direction in enumerate(of_mixer(mixer, max(numbers) == 1)) if i in numbers]
    return {
        "conv": torch.stack([one.conv1d.weight.squeeze(1) for one in chosen]),
        "conv_bias": torch.stack([one.conv1d.bias for one in chosen]),
        "dt_bias": torch.stack([wide(one.dt_proj.bias) for one in chosen]),
        "A": -torch.exp(torch.stack([wide(one.A_log) for one in chosen])),
        "D": torch.stack([wide(one.D) for one in chosen]),
        "reverse": numbers[0] == 1,
    }


def keep_wide(mixer: nn.Module) -> None:
    """Makes ``IN_FLOAT32`` so, wherever the model around is built in 16 bits."""
    for name, parameter in mixer.named_parameters():
        if name in IN_FLOAT32:
            parameter.data = wide(parameter.data)


def start_steps(bias: Tensor) -> None:
    """Step sizes start log-uniform in [0.001, 0.1]: the bias becomes softplus' inverse of such a draw."""
    log_dt = torch.empty(len(bias), dtype=torch.float32, device=bias.device).uniform_(math.log(1e-3), math.log(1e-1))
    dt = log_dt.exp()
    bias.copy_(dt + torch.log(-torch.expm1(-dt)))


def wide(x: Tensor) -> Tensor:
    """x in float32, or float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()
