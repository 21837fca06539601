"""Damaged files through the loader, fewer than ``benchmarks/decoding.py`` reads by itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks/decoding.py"
NUM_FILES = 42  # each source with each damage


def test_every_damaged_file_is_accounted_for():
    command = [sys.executable, str(SCRIPT), "--damaged", str(NUM_FILES), "--seed", "1", "--repeats", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"accounted for: {NUM_FILES} of {NUM_FILES}" in done.stdout
    counts = {kind: int(count) for count, kind in re.findall(r"^ +(\d+)  (.+)$", done.stdout, re.MULTILINE)}
    assert sum(counts.values()) == NUM_FILES
    assert 0 < counts["ok"] < NUM_FILES  # neither is everything lost nor was nothing damaged
