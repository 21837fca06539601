"""An object store on this machine: what litdata asks of S3 to read from it, and a note of what was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit


class ObjectStore(ThreadingHTTPServer):
    """Buckets are folders below ``root``.

    Attributes:
        asked: method and path of each request, and the range of bytes that it was for.
        is_down: everything is answered with an error.
    """

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.asked: list[tuple[str, str, str | None]] = []
        self.is_down = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: ObjectStore
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _file(self) -> Path:
        path = urlsplit(self.path).path
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        return self.server.root / path.strip("/")

    def _answer(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        file = self._file()
        if self.server.is_down:
            self._answer(403, b"<Error><Code>AccessDenied</Code><Message>closed</Message></Error>")
        elif not file.is_file():
            self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>")
        elif wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or ""):
            content = file.read_bytes()
            first, last = int(wanted[1]), int(wanted[2])
            part = content[first : last + 1]
            end = first + len(part) - 1
            self._answer(206, part, Content_Range=f"bytes {first}-{end}/{len(content)}", ETag='"1"')
        else:
            self._answer(200, file.read_bytes(), ETag='"1"')

    def do_HEAD(self) -> None:
        file = self._file()
        if file.is_file():
            self._answer(200, length=file.stat().st_size, ETag='"1"', Last_Modified="Tue, 24 Nov 2026 00:00:00 GMT")
        else:
            self._answer(404)


@contextmanager
def object_store(root: Path) -> Iterator[ObjectStore]:
    store = ObjectStore(root)
    thread = Thread(target=store.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.shutdown()
        store.server_close()
        thread.join()
