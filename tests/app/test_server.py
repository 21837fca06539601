"""The command and its process: what it refuses, what it says, what is left of it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from starlette.requests import ClientDisconnect

from bimba.app.server import POLICY, _is_worth_saying
from tests.app.conftest import served


def test_only_this_server_is_named_to_the_browser_and_gradio_reports_nothing(models_of, tmp_path):
    with served(models_of("none"), tmp_path) as page:
        response = httpx.get(page.address)
        assert response.headers["content-security-policy"] == POLICY
        config = httpx.get(f"{page.address}/config").json()
        assert config["analytics_enabled"] is False
        assert config["stylesheets"] == []  # of fonts, on other hosts
        assert all(dependency["api_visibility"] == "private" for dependency in config["dependencies"])
        gone = httpx.get(f"{page.address}/selection/guess")
        assert (gone.status_code, gone.text) == (404, "This map is no longer here. Drop the video again.")


@pytest.mark.parametrize(
    ("error", "said"),
    [(ClientDisconnect(), False), (asyncio.CancelledError(), False), (ZeroDivisionError(), True), (None, True)],
)
def test_visitors_who_leave_are_no_errors_in_the_terminal(error, said):
    exc_info = (type(error), error, None) if error else None
    record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "Exception in ASGI application", (), exc_info)
    assert _is_worth_saying(record) is said


def test_a_file_above_the_limit_is_refused_whoever_sends_it(models_of, tmp_path):
    with served(models_of("none"), tmp_path, max_upload_mb=1) as page:
        sent = {"files": ("large.mp4", bytes(2**20 + 1), "video/mp4")}
        assert httpx.post(f"{page.address}/gradio_api/upload", files=sent).status_code == 413
        assert page.uploaded() == []


def test_the_process_serves_on_loopback_and_leaves_no_file(checkpoints, videos, tmp_path):
    command = [sys.executable, "-m", "bimba", "app", "--checkpoint", str(checkpoints / "none"), "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            said = process.stdout.readline()
            assert said.startswith("The page is at http://127.0.0.1:")
            with open(videos / "a.mp4", "rb") as video:
                address = said.split()[4]
                (path,) = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.mp4", video)}).json()
            assert Path(path).exists() and Path(path).is_relative_to(tmp_path)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert list(tmp_path.glob("bimba-app-*")) == []
