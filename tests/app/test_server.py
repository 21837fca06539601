"""The command and its process: what it refuses, what it says, what is left of it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from starlette.requests import ClientDisconnect

from bimba import cli
from bimba.app.server import POLICY, _is_worth_saying
from tests.app.conftest import served


def refused(capsys, *arguments: str) -> str:
    assert cli.main(["app", *arguments]) in (1, 2)  # it failed, or wrong arguments
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--compare-base", "x"], "--compare-base is the base of --compare"),
        (["--compare", "bimba-tiny"], "both bimba-tiny; give two different ones"),
        (["--queries", "0"], "take 1 or more"),
        (["--max-new-tokens", "0"], "take 1 or more"),
        (["--max-upload-mb", "0"], "--max-upload-mb 0 and --keep-minutes 60; both must be above 0"),
        (["--port", "70000"], "--port is 70000; expected 0 (any that is free) to 65535"),
        (["--host", "192.0.2.1", "--port", "0"], "cannot be served at 192.0.2.1"),
        (["--checkpoint", "nowhere/checkpoint", "--port", "0"], "nowhere/checkpoint"),
        (["--num-frames", "0", "--port", "0"], "--num-frames is 0; expected 1 or more"),
        (["--num-frames", "100000", "--port", "0"], "Use fewer frames"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_served(arguments, said, capsys):
    assert said in refused(capsys, *arguments)


def test_a_port_that_is_taken_is_said(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"cannot be served at 127.0.0.1, port {port} (Address already in use)" in refused(
            capsys, "--port", str(port)
        )


def test_without_gradio_the_command_to_install_it_is_said(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'bimba[app]'" in refused(capsys, "--port", "0")


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
