"""A Weights & Biases server on this machine: it answers what a run asks, may be lost, and may come back."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

_PROJECT = {"id": "p", "name": "test", "entity": {"id": "e", "name": "me"}}
_RUN = {
    "id": "r", "name": "run", "displayName": "run", "description": "", "config": "{}", "sweepName": None,
    "historyLineCount": 0, "project": _PROJECT,
}  # fmt: skip
_ANSWERS: dict[str, Any] = {
    "viewer": {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}},
    "serverInfo": {"cliVersionInfo": {"max_cli_version": "9"}, "latestLocalVersionInfo": None, "features": []},
    "upsertBucket": {"bucket": _RUN, "inserted": True},
    "createRunFiles": {"runID": "run", "uploadHeaders": [], "files": []},
    **dict.fromkeys(("organization", "entity", "project", "model", "TypeInfo")),
    **{name: {"fields": []} for name in ("QueryType", "MutationType", "ServerInfoType")},
}


class WandbServer(ThreadingHTTPServer):
    """Answers on a port of this machine.

    Attributes:
        history: the rows that arrived.
        is_lost: connections end without an answer; ``was_asked_while_lost``.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.history: list[dict[str, Any]] = []
        self.is_lost = False
        self.was_asked_while_lost = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        if self.server.is_lost:
            self.close_connection = True
            self.server.was_asked_while_lost.set()
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path.endswith("file_stream"):
            rows = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.history += map(json.loads, rows)
            self._answer(b'{"exitcode": null, "limits": {}}')
        else:
            self._answer(json.dumps({"data": _ANSWERS}).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    server = WandbServer()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
