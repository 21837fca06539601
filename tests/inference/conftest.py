from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/tiny_checkpoint.py

from tiny_checkpoint import tiny_model, write_video

from bimba.inference import VideoQA


@pytest.fixture(scope="session")
def parts():
    return tiny_model()


@pytest.fixture
def engine(parts) -> VideoQA:
    return VideoQA(*parts)


@pytest.fixture(scope="session")
def video_file(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "noise.mp4")
