"""One process that serves the page: its address, its temporary files, and what the browser may load."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bimba.app.models import Models, Settings
from bimba.data.isolated import start_early
from bimba.types import BimbaError

# The browser refuses whatever is not from this server: no fonts, scripts or reports of others, whatever Gradio's
# sources name. 'unsafe-inline' and 'unsafe-eval' are Gradio's own scripts and styles.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; "
    "form-action 'self'; frame-ancestors 'self'; base-uri 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
TIDY_S = 60.0
Message = dict[str, Any]


def serve(settings: Settings, host: str, port: int, max_upload_mb: float, keep_minutes: float) -> None:
    """Serves the page until the process is told to end, and removes everything that was uploaded.

    Args:
        port: 0 takes a free one.
        max_upload_mb: the largest file, in 2^20 bytes, which browsers call MB.
        keep_minutes: how long a video is kept that nobody asks about.

    Raises:
        BimbaError: gradio is not installed, the address is taken or not this machine's, or what loading a model raises.
    """
    _quiet_gradio()
    listener = _listen(host, port)  # before models are loaded, which takes longer
    with listener, _sigterm_exits(), tempfile.TemporaryDirectory(prefix="bimba-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when the page is made
        start_early()  # so that the first video does not wait for it
        models = Models(settings)
        try:
            app = make_app(models, Path(folder), int(max_upload_mb * 2**20), 60 * keep_minutes)
            address = f"http://{_shown(host)}:{listener.getsockname()[1]}"
            _say(host, address)
            _run(app, listener)
        finally:
            models.end()


def make_app(models: Models, folder: Path, max_upload_bytes: int, keep_s: float) -> Any:
    """The page as an ASGI application.

    Args:
        folder: where uploads lie; GRADIO_TEMP_DIR names it.
    """
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse

    from bimba.app.page import build, look
    from bimba.app.sessions import Sessions

    sessions = Sessions(folder, models.forget, keep_s)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/selection/{token}")
    def selection(token: str) -> HTMLResponse:
        """A map to look through, as ``bimba map`` writes it."""
        if (found := sessions.selected(token)) is None:
            return HTMLResponse("This map is no longer here. Drop the video again.", status_code=404)
        return HTMLResponse(found.page)

    app.add_middleware(_Headers)
    _tidy_every(TIDY_S, sessions.tidy, models.ended)
    mounted = gr.mount_gradio_app(
        app,
        build(models, sessions, max_upload_bytes),
        path="/",
        max_file_size=max_upload_bytes,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        **look(),
    )
    return mounted


class _Headers:
    """Adds ``HEADERS`` to every response. Plain ASGI: the page's streams pass through as they are."""

    def __init__(self, app: Callable[..., Any]):
        self.app = app

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self.app(scope, receive, sending)


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """SIGTERM leaves through every ``finally``, so that files are removed; also while models are being loaded."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _quiet_gradio() -> None:
    """Imports Gradio such that it reports nothing to anybody.

    Raises:
        BimbaError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise BimbaError(
            f"bimba app needs Gradio, which cannot be imported ({error}). Install it: pip install 'bimba[app]'"
        ) from error


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        raise BimbaError(
            f"The page cannot be served at {host}, port {port} ({error.strerror or error}). Give "
            "another --port (0 takes a free one), or a --host that is an address of this machine."
        ) from error
    return listener


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _say(host: str, address: str) -> None:
    print(f"The page is at {address} (Ctrl-C ends it).", flush=True)
    if not _is_loopback(host):
        print(
            f"Anyone who can reach {host} can use it and upload videos: there is no password, and no encryption.",
            file=sys.stderr,
            flush=True,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tidy_every(seconds: float, tidy: Callable[[], None], ended: threading.Event) -> None:
    def work() -> None:
        while not ended.wait(seconds):
            tidy()

    threading.Thread(target=work, name="bimba-tidy", daemon=True).start()


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's is more than that a visitor left, or that connections end with the command."""
    from starlette.requests import ClientDisconnect

    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, (ClientDisconnect, asyncio.CancelledError)) or "graceful" in record.getMessage())


def _run(app: Any, listener: socket.socket) -> None:
    """Until SIGINT or SIGTERM, which is raised again at the end."""
    import uvicorn

    logging.getLogger("uvicorn.error").addFilter(_is_worth_saying)
    # Open pages keep a connection each, which would be waited for.
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])
