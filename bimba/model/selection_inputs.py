"""Step [4] looked at: what the scan of a layer is given, as ``attribute`` takes it, for each mixer that scans.

Mamba-2's scan is Mamba's with one decay and one step for all channels of a head and all states. Its norm behind the
gate divides by the length of the sum of both directions; that is held fixed at each query, as the gate is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bimba.model.block import ScanMixer
from bimba.model.directions import wide
from bimba.model.mamba import MambaMixer
from bimba.model.mamba2 import Mamba2Mixer
from bimba.ops import bidirectional_conv1d


@dataclass(frozen=True)
class DirectionInputs:
    """One direction of a layer's convolution and scan, as ``attribute`` takes them."""

    u: Tensor  # (L, D), what enters the convolution
    step: Tensor  # (L, D)
    A: Tensor  # (D, N)
    B: Tensor  # (L, N)
    C: Tensor  # (Q, N)
    taps: Tensor  # (D, W)
    passed: Tensor  # (L, D)


def inputs_of(mixer: ScanMixer, x: Tensor, query_index: Tensor) -> Iterator[DirectionInputs]:
    """What a layer's scan is given, one direction after the other.

    Args:
        x: (1, L, C), the layer's input behind its norm.
        query_index: (Q,) where the queries stand.
    """
    inner = mixer.inner(x)
    for number in range(2 if mixer.bidirectional else 1):
        if isinstance(mixer, MambaMixer):
            yield _of_mamba(mixer, inner, query_index, number)
        else:
            yield _of_mamba2(mixer, inner, query_index, number)


def gate_of(mixer: ScanMixer, x: Tensor, query_index: Tensor) -> Tensor:
    """(Q, D): what a layer multiplies the outputs of both directions by, in front of ``out_proj``.

    Args:
        x, query_index: as for :func:`inputs_of`.
    """
    read = x[:, query_index]
    if isinstance(mixer, MambaMixer):
        return mixer.gate(read)[0]
    gate, inner = mixer.gate(read), mixer.inner(x)
    total = torch.zeros_like(gate)
    for number in range(2 if mixer.bidirectional else 1):
        directions = mixer.directions((number,))
        total += mixer.scan(mixer.convolve(inner, directions), query_index, directions)[0][0]
    scale = torch.rsqrt((total * gate).square().mean(-1, keepdim=True) + mixer.norm.eps)
    return (gate * scale * wide(mixer.norm.weight))[0]


def _of_mamba(mixer: MambaMixer, inner: Tensor, query_index: Tensor, number: int) -> DirectionInputs:
    directions = mixer.directions((number,))
    u = mixer.convolve(inner, directions)
    _, B, C = mixer.scan_inputs(u, directions)
    z = bidirectional_conv1d(inner, directions.conv, directions.conv_bias, False, directions.reverse)
    return DirectionInputs(
        u=inner[0],
        step=mixer.step_sizes(u, directions)[0, 0],
        A=directions.A[0],
        B=B[0, 0],
        C=C[0, 0, query_index],
        taps=directions.conv[0].flip(-1),  # the last one is the token's own
        passed=torch.sigmoid(z[0, 0]),
    )


def _of_mamba2(mixer: Mamba2Mixer, inner: Tensor, query_index: Tensor, number: int) -> DirectionInputs:
    directions, D, N = mixer.directions((number,)), mixer.d_inner, mixer.d_state
    convolved = mixer.convolve(inner, directions)  # (1, 1, L, D + 2 N + H)
    _, B, C, _ = convolved[0, 0].split([D, N, N, mixer.num_heads], dim=-1)
    x = inner[..., :D]  # B and C pass the convolution beside it
    z = bidirectional_conv1d(x, directions.conv[:, :D], directions.conv_bias[:, :D], False, directions.reverse)
    return DirectionInputs(
        u=x[0],
        step=mixer.step_sizes(convolved, directions)[0, 0].repeat_interleave(mixer.head_dim, dim=-1),
        A=directions.A[0].repeat_interleave(mixer.head_dim)[:, None].expand(D, N),
        B=B,
        C=C[query_index],
        taps=directions.conv[0, :D].flip(-1),
        passed=torch.sigmoid(z[0, 0]),
    )
