from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.files import StubProcessor, numbered_frames, write_video


@pytest.fixture(scope="session")
def processor() -> StubProcessor:
    return StubProcessor()


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """96 numbered frames, 8 per second."""
    return write_video(tmp_path / "video.mp4", numbered_frames(96))


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    def make(num_frames: int, name: str = "made.mp4", **options: Any) -> Path:
        return write_video(tmp_path / name, numbered_frames(num_frames), **options)

    return make
