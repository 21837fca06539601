"""The scan's definition, one position at a time. Slow and plain: every other backend is tested against it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bimba.ops.backend import Backend
from bimba.ops.selective_scan.inputs import Scan


def forward(scan: Scan, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (R, B, Q, D), the last state (R, B, D, N), nothing saved."""
    outputs, lasts = [], []
    for number in range(scan.u.shape[0]):
        one = _Direction.of(scan, number)
        y_at = {}
        state = one.state
        for t in one.order:
            state = torch.exp(one.step[:, t, :, None] * one.A) * state + one.added(t)
            if t in one.query_at:
                q = one.query_at[t]
                y_at[q] = (state * one.C[:, q, None]).sum(-1) + one.D * one.u[:, t]
        empty = one.u.new_empty(one.u.shape[0], 0, one.u.shape[2])
        outputs.append(torch.stack([y_at[q] for q in sorted(y_at)], dim=1) if y_at else empty)
        lasts.append(state)
    y, last = torch.stack(outputs), torch.stack(lasts)
    return y, last, y.new_empty(0)


def backward(scan: Scan, saved: Tensor, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
    """The chain rule, position by position. With ``g`` the gradient of the state after a position::

    d(decay) = g h[before]     d(step) = d(decay) decay A + g B u     dB = g step u     du = g step B     dC = dy h
    """
    per_direction = [_backward(_Direction.of(scan, r), dy[r], dlast[r]) for r in range(scan.u.shape[0])]
    grads = [torch.stack(of_one) for of_one in zip(*per_direction, strict=True)]
    inputs = (scan.u, scan.delta, scan.A, scan.B, scan.C, scan.D, scan.delta_bias, scan.initial_state)
    return tuple(None if x is None else grad for x, grad in zip(inputs, grads, strict=True))


def _backward(one: _Direction, dy: Tensor, dlast: Tensor) -> tuple[Tensor, ...]:
    before = {}  # the state before each position
    state = one.state
    for t in one.order:
        before[t] = state
        state = torch.exp(one.step[:, t, :, None] * one.A) * state + one.added(t)
    du, dstep, dB, dC = (torch.zeros_like(x) for x in (one.u, one.step, one.B, one.C))
    dA, dD = torch.zeros_like(one.A), torch.zeros_like(one.D)
    g = dlast
    for t in reversed(one.order):
        u, step, B = one.u[:, t], one.step[:, t], one.B[:, t]
        if t in one.query_at:
            q = one.query_at[t]
            g = g + dy[:, q, :, None] * one.C[:, q, None]
            dC[:, q] = torch.einsum("bd,bdn->bn", dy[:, q], state)
            dD += (dy[:, q] * u).sum(0)
            du[:, t] = dy[:, q] * one.D
        gB = (g * B[:, None]).sum(-1)
        decay = torch.exp(step[..., None] * one.A)
        d_exponent = g * before[t] * decay
        du[:, t] += gB * step
        dstep[:, t] = gB * u + (d_exponent * one.A).sum(-1)
        dB[:, t] = torch.einsum("bdn,bd->bn", g, step * u)
        dA += (d_exponent * step[..., None]).sum(0)
        state, g = before[t], g * decay
    ddelta = dstep * torch.sigmoid(one.delta) if one.softplus else dstep
    return du, ddelta, dA, dB, dC, dD, ddelta.sum((0, 1)), g


@dataclass(frozen=True)
class _Direction:
    """One direction in the state's dtype."""

    u: Tensor  # (B, L, D)
    delta: Tensor  # (B, L, D), with its bias
    step: Tensor  # (B, L, D), after softplus
    A: Tensor  # (D, N)
    B: Tensor  # (B, L, N)
    C: Tensor  # (B, Q, N)
    D: Tensor  # (D,)
    state: Tensor  # (B, D, N), the first
    order: list[int]  # the positions, as they are scanned
    query_at: dict[int, int]  # position -> output
    softplus: bool

    @classmethod
    def of(cls, scan: Scan, number: int) -> _Direction:
        u, delta, A, B, C = (x[number].to(scan.dtype) for x in (scan.u, scan.delta, scan.A, scan.B, scan.C))
        if scan.delta_bias is not None:
            delta = delta + scan.delta_bias[number].to(scan.dtype)
        order = list(range(u.shape[1]))
        positions = order if scan.query_index is None else scan.query_index.tolist()
        return cls(
            u=u,
            delta=delta,
            step=F.softplus(delta) if scan.delta_softplus else delta,
            A=A,
            B=B,
            C=C,
            D=u.new_zeros(u.shape[2]) if scan.D is None else scan.D[number].to(scan.dtype),
            state=u.new_zeros(u.shape[0], *A.shape) if scan.initial_state is None else scan.initial_state[number],
            order=order[::-1] if scan.is_reverse(number) else order,
            query_at={position: q for q, position in enumerate(positions)},
            softplus=scan.delta_softplus,
        )

    def added(self, t: int) -> Tensor:
        """(B, D, N): what position t adds to the state."""
        return (self.step[:, t] * self.u[:, t])[..., None] * self.B[:, t, None]


BACKEND = Backend(forward=forward, backward=backward, priority=0)
