"""The benchmark of memory runs, on a small checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks/load_memory.py"


def test_it_prints_figures_of_equal_weights():
    done = subprocess.run([sys.executable, str(SCRIPT), "--layers", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "in 4 shards" in done.stdout
    for what in ("load_pretrained", "sharded", "naive", "convert"):
        assert f"\n{what:<16} peak " in done.stdout
    assert "\nsharded          own memory " in done.stdout
