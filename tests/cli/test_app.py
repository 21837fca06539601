"""``bimba app``: what it was asked for arrives where the page is made."""

from __future__ import annotations

import os

from bimba import cli
from bimba.app import server


def test_the_options_arrive(monkeypatch):
    served = []
    monkeypatch.setenv("BIMBA_VIDEO_BACKEND", "auto")  # undone after the test
    monkeypatch.setattr(server, "serve", lambda *arguments: served.append(arguments))
    words = (
        "--dtype bfloat16 --temporal-pooling 2 --video-backend pyav --device cpu --frames 8 --compare other --port 0"
    )
    assert cli.main(["app", *words.split()]) == 0
    settings, host, port, *_ = served[0]
    assert (settings.dtype, settings.temporal_pooling, settings.device, settings.num_frames) == (
        "bfloat16",
        2,
        "cpu",
        8,
    )
    assert settings.checkpoints == [("bimba-tiny", None), ("other", None)]
    assert settings.short_videos == "repeat"
    assert (host, port) == ("127.0.0.1", 0)
    assert os.environ["BIMBA_VIDEO_BACKEND"] == "pyav"
