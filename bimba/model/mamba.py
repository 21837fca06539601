"""Step [4]: the Mamba mixer, bidirectional selective scans over the sequence, and the norm in front of it.

The last layer is read at the queries only, so everything behind the state (the outputs C h + D u, the gate z, out_proj,
the residual) is computed there only; the state itself needs every token. The result equals computing all positions and
selecting. C is the exception: its N columns ride along in the product that makes step size and B, which takes less time
than gathering D columns at the queries, and far less in the backward pass. Parameter names are the original's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bimba.model.directions import IN_FLOAT32, keep_wide, stacked, start_steps, wide
from bimba.model.directions import Directions as CommonDirections
from bimba.ops import bidirectional_conv1d
from bimba.ops.selective_scan import scan_directions


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts the parameters in place as ``from_pretrained(dtype=...)`` does: ``IN_FLOAT32`` and buffers stay wide."""
    for name, parameter in module.named_parameters():
        stays = dtype.itemsize < 4 and name.endswith(tuple(f".mixer.{suffix}" for suffix in IN_FLOAT32))
        parameter.data = parameter.data.to(torch.float32 if stays else dtype)
    return module


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in float32."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = wide(x)
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(self.weight.dtype)


class MambaMixer(nn.Module):
    """Selective scans over the sequence, forward and backward; both directions read one ``in_proj`` and one gate.

    ``x_proj``'s rows are the low-rank step size, then B, then C.
    """

    def __init__(
        self,
        hidden_size: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        bidirectional: bool = True,
        scan_backend: str = "auto",
        backward_init: Literal["original", "forward"] = "original",
    ) -> None:
        super().__init__()
        self.d_inner = expand * hidden_size
        self.d_state = d_state
        self.dt_rank = math.ceil(hidden_size / 16)
        self.bidirectional = bidirectional
        self.scan_backend = scan_backend
        self.backward_init = backward_init

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
        keep_wide(self)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The original's initialisation; ``backward_init="forward"`` changes that of the backward direction."""
        for module in self.children():
            if isinstance(module, nn.Linear | nn.Conv1d):
                module.reset_parameters()
        device = self.D.device
        log_states = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=device).log()  # A[d, n] = -(n + 1)
        self.A_log.copy_(log_states.expand_as(self.A_log))
        self.D.fill_(1.0)
        self._start_steps(self.dt_proj)
        if self.bidirectional:
            self.A_b_log.copy_(log_states.expand_as(self.A_b_log))
            self.D_b.fill_(1.0)
            if self.backward_init == "forward":
                self._start_steps(self.dt_proj_b)
            else:
                # The original zeroes the diagonal of A_b_log (channel i, state i): A_b[i, i] = -1 instead of -(i + 1).
                # And it leaves dt_proj_b as nn.Linear makes it: steps of 0.5 to 1, a backward scan that forgets fast.
                self.A_b_log.fill_diagonal_(0.0)
        # Zero, so that a fresh layer adds nothing to the queries: training starts from the pooled model.
        self.out_proj.weight.zero_()

    def _start_steps(self, dt_proj: nn.Linear) -> None:
        nn.init.uniform_(dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        start_steps(dt_proj.bias)

    def forward(self, x: Callable[[], Tensor], read: Tensor, query_index: Tensor | None) -> Tensor:
        """One layer without its residual.

        Args:
            x: makes the layer's input, (B, L, C); called once, so that the input need not outlive in_proj.
            read: (B, Q, C), the input at the positions that are read afterwards.
            query_index: (Q,) these positions; None: all, in their order.

        Returns:
            (B, Q, C).
        """
        numbers = (0, 1) if self.bidirectional else (0,)
        inner = self.inner(x())
        # A GPU is filled by one launch for both directions; one after the other halves what is in memory at a time.
        launches = [numbers] if inner.is_cuda else [(number,) for number in numbers]
        y: list[Tensor] = []
        for launch in launches:
            directions = self.directions(launch)
            u = self.convolve(inner, directions)
            if launch is launches[-1]:
                del inner  # half a gigabyte and more at 64 frames of the 7B model, and the scan needs room
            y += self.scan(u, query_index, directions)[0].unbind(0)
        return self.read_out(y, read)

    def inner(self, x: Tensor) -> Tensor:
        """in_proj without the gate's half: (B, L, C) -> (B, L, D)."""
        return F.linear(x, self.in_proj.weight[: self.d_inner])

    def directions(self, numbers: tuple[int, ...]) -> Directions:
        """The parameters of direction 0 (forward), 1 (backward), or both."""
        own = [(self.x_proj, self.dt_proj), (self.x_proj_b, self.dt_proj_b) if self.bidirectional else ()]
        x_proj, dt_proj = zip(*(own[number] for number in numbers), strict=True)
        return Directions(
            **stacked(self, numbers),
            x_proj=torch.stack([module.weight for module in x_proj]),
            dt_proj=torch.stack([module.weight for module in dt_proj]),
        )

    def convolve(self, inner: Tensor, directions: Directions) -> Tensor:
        """(B, L, D) -> (R, B, L, D)."""
        return bidirectional_conv1d(inner, directions.conv, directions.conv_bias, True, directions.reverse)

    def scan(
        self, u: Tensor, query_index: Tensor | None, directions: Directions, initial_state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """u (R, B, L, D) -> y (R, B, Q, D) before the gate, and the last state (R, B, D, N); both wide."""
        delta, B, C = self.scan_inputs(u, directions)
        C = C if query_index is None else C.index_select(2, query_index)
        return scan_directions(
            u, delta, directions.A, B, C, directions.D, directions.dt_bias,
            initial_state=initial_state, delta_softplus=True, reverse=directions.reverse, query_index=query_index,
            backend=self.scan_backend,
        )  # fmt: skip

    def scan_inputs(self, u: Tensor, directions: Directions) -> tuple[Tensor, Tensor, Tensor]:
        """u (R, B, L, D) -> the step size before bias and softplus (R, B, L, D), and B and C (R, B, L, N)."""
        dt, B, C = _project(u, directions.x_proj).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return _project(dt, directions.dt_proj), B, C

    def step_sizes(self, u: Tensor, directions: Directions) -> Tensor:
        """u (R, B, L, D) -> the step sizes (R, B, L, D), wide, as the scan makes them."""
        return F.softplus(wide(self.scan_inputs(u, directions)[0]) + directions.dt_bias[:, None, None])

    def read_out(self, y: Sequence[Tensor], read: Tensor) -> Tensor:
        """Sums the directions (B, Q, D) and gates them by the input at their positions (B, Q, C) -> (B, Q, C)."""
        gate = self.gate(read)
        total = y[0] if len(y) == 1 else y[0] + y[1]
        out: Tensor = self.out_proj((total * gate).to(gate.dtype))
        return out

    def gate(self, read: Tensor) -> Tensor:
        """The input at the positions that are read, (B, Q, C) -> (B, Q, D), the same for both directions."""
        return F.silu(F.linear(read, self.in_proj.weight[self.d_inner :]))

    def products(self, length: int, num_read: int) -> Iterator[tuple[Tensor | None, float]]:
        """As ``Compressor.products``, of L positions and Q that are read."""
        yield self.in_proj.weight, (length + num_read) / 2  # x everywhere, the gate where it is read
        for suffix in ("", "_b")[: 1 + self.bidirectional]:
            for name in ("conv1d", "x_proj", "dt_proj"):
                yield self.get_submodule(name + suffix).get_parameter("weight"), length
            # Decay, input and sum for each state entry, and where it is read two more.
            yield None, self.d_inner * self.d_state * (6.0 * length + 2.0 * num_read)
        yield self.out_proj.weight, num_read


@dataclass(frozen=True)
class Directions(CommonDirections):
    """The parameters of R directions that scan together."""

    x_proj: Tensor  # (R, dt_rank + 2 N, D)
    dt_proj: Tensor  # (R, D, dt_rank)


def _project(x: Tensor, weight: Tensor) -> Tensor:
    """(R, B, L, I), (R, O, I) -> (R, B, L, O)."""
    return torch.bmm(x.flatten(1, 2), weight.mT).unflatten(1, x.shape[1:3])
