"""What the benchmark of selection maps counts as a needle's token, and as being among the strongest."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from bimba.types import Frames

PATH = Path(__file__).parents[2] / "benchmarks/selection.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("selection_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Grid:
    grid: tuple[int, int, int]
    frames: torch.Tensor


def test_a_needles_tokens(benchmark):
    """Needles of 12 pixels in frames of 96, on 8 x 8 tokens and on 6 x 6, which they overlap two of."""
    frames = Frames(np.zeros((5, 96, 96, 3), np.uint8), np.arange(5.0), np.array([0, 3, 6, 9, 12]), 5.0, 13, 1.0, "")
    clip = {"needles": [{"start": 4, "length": 5, "x": 24, "y": 60}, {"start": 12, "length": 2, "x": 0, "y": 0}]}
    shows = benchmark.needle_tokens(clip, 12, frames, Grid((5, 8, 8), torch.arange(5)))
    assert shows.nonzero().tolist() == [[2, 5, 2], [4, 0, 0]]
    shows = benchmark.needle_tokens(clip, 12, frames, Grid((3, 6, 6), torch.tensor([0, 2, 4])))
    assert shows.nonzero().tolist() == [[1, 3, 1], [1, 3, 2], [1, 4, 1], [1, 4, 2], [2, 0, 0]]


def test_the_top_is_a_twentieth(benchmark):
    values = torch.arange(100.0)
    assert benchmark.in_top(values, values >= 95) == 1
    assert benchmark.in_top(values, values < 95) == 0
    assert benchmark.in_top(values, (values == 94) | (values == 99)) == 0.5
    assert benchmark.in_top(torch.zeros(100), values == 3) == pytest.approx(0.05)  # a map of nothing is chance


def test_the_interval_is_around_the_mean(benchmark):
    low, _, high = benchmark.spread([0.0, 1.0] * 50, 0).split("  ")[1].split()
    assert float(low.rstrip("%")) == pytest.approx(50 - 196 * math.sqrt(0.25 / 100), abs=2)
    assert float(high.rstrip("%")) == pytest.approx(50 + 196 * math.sqrt(0.25 / 100), abs=2)
