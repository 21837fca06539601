"""Where the random generators of all processes stand, as part of a checkpoint."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def state_here() -> State:
    """Of this process's generators: Python's, numpy's, torch's, and each GPU's that it uses."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), position, has_gauss, gauss),  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def states_everywhere(world_size: int) -> list[State]:
    """Of each process, in order; every process must ask."""
    if world_size == 1:
        return [state_here()]
    states: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(states, state_here())
    return states


def restore(states: list[State], rank: int, world_size: int, seed: tuple[int, int]) -> bool:
    """Puts this process's generators where they stood; whether that is possible.

    With another number of processes there is no such state. Then each gets a new one that follows from ``seed``, and
    dropout, say, is another than it would have been.
    """
    if len(states) != world_size:
        numbers = np.random.SeedSequence([*seed, world_size, rank]).generate_state(3)
        random.seed(int(numbers[0]))
        np.random.seed(int(numbers[1]))
        torch.manual_seed(int(numbers[2]))
        return False
    state = states[rank]
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    return True
