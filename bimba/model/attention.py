"""Self-attention in the place of the compressor's scan (step [4]), to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bimba.types import BimbaError


class AttentionMixer(nn.Module):
    """Self-attention in the mixer's place, to compare with: as wide as the Mamba mixer, quadratic in L."""

    num_heads = 8

    def __init__(self, hidden_size: int, expand: int = 2) -> None:
        super().__init__()
        d_inner = expand * hidden_size
        if d_inner % self.num_heads:
            raise BimbaError(
                f"the attention mixer has {self.num_heads} heads: expand * hidden_size must be divisible by it, "
                f"received {expand} * {hidden_size} = {d_inner}."
            )
        self.in_proj = nn.Linear(hidden_size, d_inner)
        self.qkv = nn.Linear(d_inner, 3 * d_inner, bias=False)
        self.proj = nn.Linear(d_inner, d_inner)
        self.out_proj = nn.Linear(d_inner, hidden_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """PyTorch's initialisation, and a zero out_proj: a fresh layer adds nothing to the queries."""
        for linear in (self.in_proj, self.qkv, self.proj, self.out_proj):
            linear.reset_parameters()
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Callable[[], Tensor], read: Tensor, query_index: Tensor | None) -> Tensor:
        """The layer's input x() (B, L, C), and what is read of it (B, Q, C) -> (B, Q, C)."""
        weight_q, weight_kv = self.qkv.weight.split([self.proj.in_features, 2 * self.proj.in_features])
        q = F.linear(self.in_proj(read), weight_q)
        k, v = F.linear(self.in_proj(x()), weight_kv).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, L, D / heads)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.out_proj(self.proj(y))
        return out

    def products(self, length: int, num_read: int) -> Iterator[tuple[Tensor | None, float]]:
        """As ``Compressor.products``, of L positions and Q that are read."""
        yield self.in_proj.weight, length + num_read
        yield self.qkv.weight, (2 * length + num_read) / 3
        yield self.proj.weight, num_read
        yield self.out_proj.weight, num_read
        yield None, 4.0 * num_read * length * self.proj.in_features
