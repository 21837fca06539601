from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # tests/tiny_checkpoint.py, whatever pytest was called from

from tiny_checkpoint import tiny_model, write_video


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    from bimba.checkpoint import save_pretrained

    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_pretrained(*tiny_model(), folder)
    return str(folder)


@pytest.fixture(scope="session")
def video(tmp_path_factory) -> str:
    return str(write_video(tmp_path_factory.mktemp("videos") / "noise.mp4"))
