"""The benchmark of training runs, on a small vocabulary."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks/training.py"


def test_it_prints_figures_of_equal_losses():
    command = [sys.executable, str(SCRIPT), "--tokens", "4096", "--vocabulary", "4000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ratio = float(done.stdout.split("ratio 1/")[1])
    assert ratio > 2  # an eighth of the tokens at a time, and what a small run costs besides
