from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/tiny_checkpoint.py

from tiny_checkpoint import tiny_model, write_needles

from bimba.checkpoint import save_pretrained


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_pretrained(*tiny_model(), folder)
    return folder


@pytest.fixture(scope="session")
def needle_root(tmp_path_factory) -> Path:
    return write_needles(tmp_path_factory.mktemp("needle"))
