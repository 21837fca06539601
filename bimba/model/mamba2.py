"""Step [4]: the Mamba-2 mixer, bidirectional, read at the queries only, as :mod:`bimba.model.mamba` does for Mamba.

What Mamba-2 (Dao & Gu 2024) changes: one decay per head of channels instead of one per channel and state, so that the
state can be larger and the scan is matrix products; B, C and the step come from the layer's input beside x instead of
from x; x, B and C pass the convolution together; the gated outputs are normalised before ``out_proj``.

One direction with every position read is that mixer exactly. Two directions share ``in_proj``, the norm and the gate,
and add their outputs before these; convolution, step, decay and skip are a direction's own, the backward one's called
``*_b`` as in Mamba's mixer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bimba.model.directions import Directions as CommonDirections
from bimba.model.directions import keep_wide, of_mixer, stacked, start_steps, wide
from bimba.model.mamba import RMSNorm
from bimba.ops import bidirectional_conv1d
from bimba.ops.ssd import ssd
from bimba.types import BimbaError


class Mamba2Mixer(nn.Module):
    """Scans over the sequence, forward and backward.

    ``in_proj``'s rows are x, B, C, then the gate z. Linear layers of their own, ``dt_proj`` and ``dt_proj_b``, make the
    step sizes: in Mamba-2 these are further rows of ``in_proj``, with a bias that is kept in float32.

    Args:
        hidden_size: C.
        d_state: N, state entries per channel.
        d_conv: taps of the convolution in front of the scan.
        expand: inner channels D = expand * C.
        head_dim: P, channels that share a decay; a layer of fewer inner channels is one head.
        bidirectional: scan backward too.
    """

    def __init__(
        self,
        hidden_size: int,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        head_dim: int = 64,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        self.d_inner = expand * hidden_size
        self.head_dim = min(head_dim, self.d_inner)
        if head_dim < 1 or self.d_inner % self.head_dim:
            raise BimbaError(
                f"the Mamba-2 mixer has heads of head_dim={head_dim} channels: expand * hidden_size must be divisible "
                f"by it, received {expand} * {hidden_size} = {self.d_inner}."
            )
        self.d_state = d_state
        self.num_heads = self.d_inner // self.head_dim
        self.bidirectional = bidirectional
        self.conv_dim = self.d_inner + 2 * d_state  # x, B, C

        def conv() -> nn.Conv1d:
            return nn.Conv1d(self.conv_dim, self.conv_dim, d_conv, groups=self.conv_dim)

        self.in_proj = nn.Linear(hidden_size, self.conv_dim + self.d_inner, bias=False)
        self.conv1d = conv()
        self.dt_proj = nn.Linear(hidden_size, self.num_heads)
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.D = nn.Parameter(torch.empty(self.num_heads))
        if bidirectional:
            self.conv1d_b = conv()
            self.dt_proj_b = nn.Linear(hidden_size, self.num_heads)
            self.A_b_log = nn.Parameter(torch.empty(self.num_heads))
            self.D_b = nn.Parameter(torch.empty(self.num_heads))
        self.norm = RMSNorm(self.d_inner, eps=1e-5)
        self.out_proj = nn.Linear(self.d_inner, hidden_size, bias=False)
        keep_wide(self)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Mamba-2's initialisation, the same for both directions, and a zero out_proj: a fresh layer adds nothing."""
        for module in self.children():
            if isinstance(module, nn.Linear | nn.Conv1d):
                module.reset_parameters()
        nn.init.ones_(self.norm.weight)
        for own in of_mixer(self, self.bidirectional):
            A = torch.empty(self.num_heads, dtype=torch.float32, device=own.D.device).uniform_(1, 16)
            own.A_log.copy_(A.log())  # A between -1 and -16
            own.D.fill_(1.0)
            start_steps(own.dt_proj.bias)
        self.out_proj.weight.zero_()

    def forward(self, x: Callable[[], Tensor], read: Tensor, query_index: Tensor | None) -> Tensor:
        """One layer without its residual, as :meth:`bimba.model.mamba.MambaMixer.forward`.

        Args:
            x: makes the layer's input, (B, L, C).
            read: (B, Q, C), the input at the positions that are read afterwards.
            query_index: (Q,) these positions; None: all, in their order.

        Returns:
            (B, Q, C).
        """
        inner = self.inner(x())
        y: list[Tensor] = []
        for number in (0, 1) if self.bidirectional else (0,):  # one after the other halves what is in memory at a time
            directions = self.directions((number,))
            y += self.scan(self.convolve(inner, directions), query_index, directions)[0].unbind(0)
        return self.read_out(y, read)

    def inner(self, x: Tensor) -> Tensor:
        """What needs every token: (B, L, C) -> (B, L, D + 2 N + H for each direction), x, B, C, then the steps."""
        steps = [self.dt_proj.weight, self.dt_proj_b.weight] if self.bidirectional else [self.dt_proj.weight]
        return F.linear(x, torch.cat([self.in_proj.weight[: self.conv_dim], *steps]))

    def directions(self, numbers: tuple[int, ...]) -> Directions:
        """The parameters of direction 0 (forward), 1 (backward), or both."""
        return Directions(**stacked(self, numbers), numbers=numbers)

    def convolve(self, inner: Tensor, directions: Directions) -> Tensor:
        """:meth:`inner`'s output -> (R, B, L, D + 2 N + H), the convolved x, B, C of R directions, and their steps."""
        xBC, *steps = inner.split([self.conv_dim, *[self.num_heads] * (1 + self.bidirectional)], dim=-1)
        convolved = bidirectional_conv1d(xBC, directions.conv, directions.conv_bias, True, directions.reverse)
        return torch.cat([convolved, torch.stack([steps[number] for number in directions.numbers])], dim=-1)

    def scan(
        self, u: Tensor, query_index: Tensor | None, directions: Directions, initial_state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """:meth:`convolve`'s output -> y (R, B, Q, D) before the gate, the last state (R, B, H, P, N); both wide."""
        outputs = []
        for r, of_direction in enumerate(u.unbind(0)):
            x, B, C, dt = of_direction.split([self.d_inner, self.d_state, self.d_state, self.num_heads], dim=-1)
            outputs.append(
                ssd(
                    x.unflatten(2, (self.num_heads, self.head_dim)),
                    F.softplus(dt + directions.dt_bias[r]),
                    directions.A[r],
                    B,
                    C if query_index is None else C.index_select(1, query_index),
                    directions.D[r],
                    initial_state=None if initial_state is None else initial_state[r],
                    reverse=directions.reverse != (r == 1),
                    query_index=query_index,
                )
            )
        y, states = zip(*outputs, strict=True)
        return torch.stack(y).flatten(3), torch.stack(states)

    def step_sizes(self, u: Tensor, directions: Directions) -> Tensor:
        """:meth:`convolve`'s output -> the step sizes (R, B, L, H), wide, as the scan has them."""
        return F.softplus(wide(u[..., self.conv_dim :]) + directions.dt_bias[:, None, None])

    def read_out(self, y: Sequence[Tensor], read: Tensor) -> Tensor:
        """Sums the directions (B, Q, D), gates them by the input at their positions (B, Q, C) -> (B, Q, C)."""
        gate = self.gate(read)
        total = y[0] if len(y) == 1 else y[0] + y[1]
        out: Tensor = self.out_proj(self.norm(total * gate))
        return out

    def gate(self, read: Tensor) -> Tensor:
        """The input at the positions that are read, (B, Q, C) -> (B, Q, D), wide, the same for both directions."""
        return F.silu(wide(F.linear(read, self.in_proj.weight[self.conv_dim :])))

    def products(self, length: int, num_read: int) -> Iterator[tuple[Tensor | None, float]]:
        """What one sample multiplies, of L positions and Q that are read: (matrix, positions), (None, operations)."""
        rows = self.conv_dim + self.d_inner  # x, B, C everywhere, the gate where it is read
        yield self.in_proj.weight, (self.conv_dim * length + self.d_inner * num_read) / rows
        for suffix in ("", "_b")[: 1 + self.bidirectional]:
            for name in ("conv1d", "dt_proj"):
                yield self.get_submodule(name + suffix).get_parameter("weight"), length
            # Decay, input and sum for each state entry, and where it is read two more.
            yield None, self.d_inner * self.d_state * (3.0 * length + 2.0 * num_read)
        yield self.out_proj.weight, num_read


@dataclass(frozen=True)
class Directions(CommonDirections):
    """The parameters of R directions that scan together."""

    numbers: tuple[int, ...]  # 0: forward, 1: backward
