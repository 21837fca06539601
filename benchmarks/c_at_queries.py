"""Is C worth computing at the queries only? One product that makes step size, B and C at every position and drops most
of C, which is what the layer does, against two: step size and B everywhere, C of the rows gathered at the queries.

    python benchmarks/c_at_queries.py        hidden size 256, 16 frames; one thread
"""

from __future__ import annotations

from functools import partial

import torch
from layer import GRID
from measure import agree, header, median_seconds, milliseconds
from torch import Tensor

HIDDEN_SIZE, FRAMES, STATES, REPEATS = 256, 16, 16, 9


def together(u: Tensor, weight: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """u (L, D), weight (R + 2 N, D), index (Q,) -> step size and B (L, R + N), C (Q, N)."""
    made = u @ weight.mT
    return made[:, :-STATES], made[:, -STATES:].index_select(0, index)


def apart(u: Tensor, weight: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    return u @ weight[:-STATES].mT, u.index_select(0, index) @ weight[-STATES:].mT


def main() -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    queries = FRAMES * ((GRID + 1) // 2) ** 2
    length, channels, rank = FRAMES * GRID**2 + queries, 2 * HIDDEN_SIZE, HIDDEN_SIZE // 16
    u = torch.randn(length, channels, requires_grad=True)
    weight = torch.randn(rank + 2 * STATES, channels, requires_grad=True)
    index = torch.linspace(0, length - 1, queries).long()
    gradients = torch.randn(length, rank + STATES), torch.randn(queries, STATES)
    ways = {"together": together, "apart": apart}

    def forward(way: str) -> list[Tensor]:
        with torch.no_grad():
            return list(ways[way](u, weight, index))

    def both(way: str) -> list[Tensor]:
        return list(torch.autograd.grad(ways[way](u, weight, index), (u, weight), gradients))

    print(header())
    for name, run in {"forward": forward, "forward + backward": both}.items():
        runs = {way: partial(run, way) for way in ways}
        if not agree(runs, run("together"), "together", 1e-5):
            return 1
        times_s = median_seconds(runs, REPEATS)
        print(f"{name:20s}" + "  ".join(f"{way} {milliseconds(time_s)} ms" for way, time_s in times_s.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
