from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/tiny_checkpoint.py
sys.path.insert(0, str(Path(__file__).resolve().parent))  # harness.py beside this file

from tiny_checkpoint import write_video


@pytest.fixture(scope="session")
def film(tmp_path_factory) -> str:
    """Twelve frames at eight a second."""
    return str(write_video(tmp_path_factory.mktemp("film") / "film.mp4"))
