"""Step [4]: one layer of the compressor. RMSNorm, a mixer (bidirectional Mamba, or attention to compare), a residual.

A layer is told which positions are read afterwards (``query_index``). The last layer is read at the queries only, so
everything behind the state (C, the gate z, the skip D, out_proj, the residual) is computed there only; the state
itself needs every token. The result equals computing all positions and selecting. Parameter names are the original's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bimba.ops import causal_conv1d, selective_scan
from bimba.types import BimbaError

# The scan takes these in float32 whatever the model's dtype, so casting a model to 16 bits must not round them.
IN_FLOAT32 = ("A_log", "A_b_log", "D", "D_b", "dt_proj.bias", "dt_proj_b.bias")


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts the parameters in place as ``from_pretrained(dtype=...)`` does: ``IN_FLOAT32`` and buffers stay wide."""
    for name, parameter in module.named_parameters():
        wide = dtype.itemsize < 4 and name.endswith(tuple(f".mixer.{suffix}" for suffix in IN_FLOAT32))
        parameter.data = parameter.data.to(torch.float32 if wide else dtype)
    return module


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in float32."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = _wide(x)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(self.weight.dtype)


class MambaMixer(nn.Module):
    """Selective scans over the sequence, forward and backward; both directions read one ``in_proj`` and one gate.

    ``x_proj``'s rows are the low-rank step size, then B, then C. The backward direction's parameters are called
    ``*_b`` as in the original: ``A_b_log``, ``D_b``, ``conv1d_b``, ``x_proj_b``, ``dt_proj_b``.
    """

    def __init__(
        self,
        hidden_size: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        bidirectional: bool = True,
        scan_backend: str = "auto",
    ) -> None:
        super().__init__()
        self.d_inner = expand * hidden_size
        self.d_state = d_state
        self.dt_rank = math.ceil(hidden_size / 16)
        self.bidirectional = bidirectional
        self.scan_backend = scan_backend

        def conv() -> nn.Conv1d:
            return nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner)

        def x_proj() -> nn.Linear:
            return nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)

        self.in_proj = nn.Linear(hidden_size, 2 * self.d_inner, bias=False)  # rows: x, then the gate z
        self.conv1d = conv()
        self.x_proj = x_proj()
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state))
        self.D = nn.Parameter(torch.empty(self.d_inner))
        if bidirectional:
            self.conv1d_b = conv()
            self.x_proj_b = x_proj()
            self.dt_proj_b = nn.Linear(self.dt_rank, self.d_inner)
            self.A_b_log = nn.Parameter(torch.empty(self.d_inner, d_state))
            self.D_b = nn.Parameter(torch.empty(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, hidden_size, bias=False)
        for name, parameter in self.named_parameters():
            if name in IN_FLOAT32:
                parameter.data = _wide(parameter.data)  # wherever the model around is built in 16 bits
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The original's initialisation."""
        for module in self.children():
            if isinstance(module, nn.Linear | nn.Conv1d):
                module.reset_parameters()
        device = self.D.device
        log_states = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=device).log()  # A[d, n] = -(n + 1)
        self.A_log.copy_(log_states.expand_as(self.A_log))
        self.D.fill_(1.0)
        # Step sizes start log-uniform in [0.001, 0.1]: the bias is softplus' inverse of such a draw.
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        log_dt = torch.empty(self.d_inner, dtype=torch.float32, device=device).uniform_(math.log(1e-3), math.log(1e-1))
        dt = log_dt.exp()
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        if self.bidirectional:
            # The original zeroes the diagonal of A_b_log (channel i, state i), so A_b[i, i] = -1 instead of -(i + 1).
            self.A_b_log.copy_(log_states.expand_as(self.A_b_log)).fill_diagonal_(0.0)
            self.D_b.fill_(1.0)
            # The original leaves dt_proj_b as nn.Linear makes it: steps of 0.5 to 1, a backward scan that forgets fast.
        # Zero, so that a fresh layer adds nothing to the queries: training starts from the pooled model.
        self.out_proj.weight.zero_()

    def forward(self, x: Tensor, query_index: Tensor | None = None) -> Tensor:
        """(B, L, C) -> (B, L, C), or (B, Q, C) with ``query_index``."""
        weight_x, weight_z = self.in_proj.weight.split(self.d_inner)
        inner = F.linear(x, weight_x)  # (B, L, D)
        y = self._scan(inner, query_index, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D, reverse=False)
        if self.bidirectional:
            y = y + self._scan(
                inner, query_index, self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b, reverse=True
            )
        gate = F.silu(F.linear(_select(x, query_index), weight_z))  # (B, Q, D), the same for both directions
        out: Tensor = self.out_proj(y * gate)
        return out

    def _scan(
        self,
        inner: Tensor,
        query_index: Tensor | None,
        conv: nn.Conv1d,
        x_proj: nn.Linear,
        dt_proj: nn.Linear,
        A_log: Tensor,
        D: Tensor,
        *,
        reverse: bool,
    ) -> Tensor:
        """One direction without its gate: (B, L, D) -> (B, Q, D)."""
        u = causal_conv1d(inner.transpose(1, 2), conv.weight.squeeze(1), conv.bias, "silu", reverse)  # (B, D, L)
        tokens = u.transpose(1, 2)
        weight_dt_B, weight_C = x_proj.weight.split([self.dt_rank + self.d_state, self.d_state])
        dt, B = F.linear(tokens, weight_dt_B).split([self.dt_rank, self.d_state], dim=-1)
        C = F.linear(_select(tokens, query_index), weight_C)
        # A, D and the step's bias enter in float32 whatever the model's dtype; the bias joins inside the scan.
        y = selective_scan(
            u,
            F.linear(dt, dt_proj.weight).transpose(1, 2),
            -torch.exp(_wide(A_log)),
            B.transpose(1, 2),
            C.transpose(1, 2),
            _wide(D),
            delta_bias=_wide(dt_proj.bias),
            delta_softplus=True,
            reverse=reverse,
            query_index=query_index,
            backend=self.scan_backend,
        )
        return y.transpose(1, 2)


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

    def forward(self, x: Tensor, query_index: Tensor | None = None) -> Tensor:
        """(B, L, C) -> (B, L, C), or (B, Q, C) with ``query_index``."""
        inner = self.in_proj(x)
        weight_q, weight_kv = self.qkv.weight.split([inner.shape[-1], 2 * inner.shape[-1]])
        q = F.linear(_select(inner, query_index), weight_q)
        k, v = F.linear(inner, weight_kv).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, L, D / heads)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.out_proj(self.proj(y))
        return out


class MambaBlock(nn.Module):
    """x + mixer(norm(x)), at the positions that are read afterwards."""

    def __init__(self, mixer: nn.Module, hidden_size: int, norm: bool = True, residual: bool = True) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden_size) if norm else nn.Identity()
        self.mixer = mixer
        self.residual = residual

    def forward(self, x: Tensor, query_index: Tensor | None = None) -> Tensor:
        """(B, L, C) -> (B, L, C), or (B, Q, C) with ``query_index``."""
        y: Tensor = self.mixer(self.norm(x), query_index)
        return y + _select(x, query_index) if self.residual else y


def _select(x: Tensor, query_index: Tensor | None) -> Tensor:
    """(B, L, C) -> (B, Q, C)."""
    return x if query_index is None else x.index_select(1, query_index)


def _wide(x: Tensor) -> Tensor:
    """x in float32, or float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()
