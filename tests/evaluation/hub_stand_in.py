"""A stand-in of the Hugging Face hub on this machine: the few endpoints that datasets and huggingface_hub ask.

It is also the proxy of the commands under test, so that whatever they ask of any other host ends here, in ``outside``.
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_tests"


class Hub:
    """Serves the data sets below ``root`` (``owner/name/files``) while it is entered.

    Attributes:
        outside: what was asked of other hosts, such as "CONNECT example.org:443".
        gated: data sets that are refused without the token, like LongVideoBench's.
    """

    def __init__(self, root: Path, gated: tuple[str, ...] = ()):
        self.root = root
        self.gated = gated
        self.outside: list[str] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repository: str) -> dict[str, Path]:
        folder = self.root / repository
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        self._refuse()

    def do_POST(self) -> None:
        self._refuse()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.netloc:
            return self._refuse()
        parts = unquote(address.path).strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        if parts[0] == "datasets" and len(parts) > 5 and parts[3] == "resolve":
            return self._file("/".join(parts[1:3]), "/".join(parts[5:]))
        return self._json({"error": "no such page"}, 404)

    def _refuse(self) -> None:
        self.hub.outside.append(f"{self.command} {self.path}")
        self._json({"error": "tests use no network"}, 403)

    def _api(self, repository: str, rest: list[str]) -> None:
        files = self.hub.files(repository)
        if not files:
            return self._json({"error": "Repository not found"}, 404)
        if rest[:1] == ["tree"]:
            return self._json(self._tree(files, "/".join(rest[2:])))
        info = {
            "_id": COMMIT[:24],
            "id": repository,
            "sha": COMMIT,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": name} for name in files],
        }
        return self._json(info)

    def _tree(self, files: dict[str, Path], below: str) -> list[dict[str, object]]:
        inside = {name: path for name, path in files.items() if not below or name.startswith(f"{below}/")}
        folders = {"/".join(name.split("/")[:i]) for name in inside for i in range(1, name.count("/") + 1)}
        entries: list[dict[str, object]] = [{"type": "directory", "oid": COMMIT, "size": 0, "path": f} for f in folders]
        recursive = "recursive=true" in self.path.lower()
        for name, path in inside.items():
            entries.append({"type": "file", "oid": _etag(path), "size": path.stat().st_size, "path": name})
        depth = below.count("/") + 1 if below else 0
        return [e for e in entries if recursive or str(e["path"]).count("/") == depth]

    def _file(self, repository: str, name: str) -> None:
        if repository in self.hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "gated"}, 401, {"X-Error-Code": "GatedRepo"})
        path = self.hub.files(repository).get(name)
        if path is None:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        content = path.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(path)}"', "Accept-Ranges": "bytes"}
        status = 200
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            content, status = content[begin : end + 1], 206
        self._send(content, status, {"Content-Type": "application/octet-stream", **headers})

    def _json(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        headers = {"Content-Type": "application/json", "X-Repo-Commit": COMMIT, **(headers or {})}
        self._send(json.dumps(content).encode(), status, headers)

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
