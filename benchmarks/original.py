"""The compressor's layer computed in the original implementation's order, on our parameters, to compare with.

Everything at every position: a buffer for the sequence, in_proj for x and gate together, channels first in memory; both
directions one after the other, the backward one on flipped copies; gate, out_proj and residual everywhere; then the
queries are selected. Which convolution and scan it is given is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bimba.model.compressor import MambaCompressor
from bimba.model.mamba import MambaMixer
from bimba.ops import selective_scan

Convolution = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (B, D, L), weight (D, W), bias (D,) -> silu of the sum
FullScan = Callable[..., Tensor]  # u, delta, A, B, C, D, z, delta_bias


class OriginalsWay:
    """Called as the compressor is.

    Args:
        compressor: of one layer; its parameters are used.
        scan: full outputs, gated.
        convolve: default: PyTorch's conv1d and silu.
        host_buffer: the sequence's buffer is made of zeros in float32 on the host and moved to the device, as the
            original does in every forward pass.
    """

    def __init__(
        self,
        compressor: MambaCompressor,
        scan: FullScan | None = None,
        convolve: Convolution | None = None,
        host_buffer: bool = False,
    ) -> None:
        self.compressor = compressor
        self.scan = scan or our_scan
        self.convolve = convolve or convolve_and_silu
        self.host_buffer = host_buffer

    def __call__(self, space_time_tokens: Tensor, queries: Tensor) -> Tensor:
        tokens, flat_queries = space_time_tokens.flatten(1, 3), queries.flatten(1, 2)
        index = self.compressor.query_index(tokens.shape[1], flat_queries.shape[1]).to(tokens.device)
        layer = self.compressor.layers[0]
        combined = self.combine(tokens, flat_queries, index)
        out = self.mix(layer.mixer, layer.norm(combined)) + combined
        return out[:, index].view(queries.shape)

    def combine(self, tokens: Tensor, queries: Tensor, index: Tensor) -> Tensor:
        shape = (tokens.shape[0], tokens.shape[1] + queries.shape[1], tokens.shape[2])
        if self.host_buffer:
            combined = torch.zeros(shape).to(device=tokens.device, dtype=tokens.dtype)
        else:
            combined = torch.zeros(shape, device=tokens.device, dtype=tokens.dtype)
        is_token = torch.ones(shape[1], dtype=torch.bool, device=tokens.device)
        is_token[index] = False
        combined[:, is_token] = tokens
        combined[:, index] = queries
        return combined

    def mix(self, mixer: MambaMixer, x: Tensor) -> Tensor:
        xz = torch.matmul(mixer.in_proj.weight, x.mT)  # (B, 2 D, L)
        y = self.direction(xz, mixer, 0)
        y = y + self.direction(xz.flip(-1), mixer, 1).flip(-1)
        return F.linear(y.mT, mixer.out_proj.weight)

    def direction(self, xz: Tensor, mixer: MambaMixer, number: int) -> Tensor:
        p = mixer.directions((number,))
        x, z = xz.chunk(2, dim=1)
        u = self.convolve(x, p.conv[0], p.conv_bias[0])
        parts = F.linear(u.mT, p.x_proj[0]).split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
        delta = torch.matmul(p.dt_proj[0], parts[0].mT)
        B, C = (part.mT.contiguous() for part in parts[1:])
        return self.scan(u, delta, p.A[0], B, C, p.D[0], z, p.dt_bias[0])


def convolve_and_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    width = weight.shape[1]
    return F.silu(F.conv1d(x, weight.unsqueeze(1), bias, padding=width - 1, groups=x.shape[1])[..., : x.shape[2]])


def our_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """The package's own, of every position."""
    y: Tensor = selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)
    return y
