"""For every test: no network, and `tests/` importable for the shared tiny checkpoint."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

# Some tasks of lmms-eval import it, and it keeps the sys.stderr of that moment: of a test with capsys, which closes it.
import nltk  # noqa: F401
import pytest
import torch

if not torch.cuda.is_available():  # the GPU's kernels run in Triton's interpreter; Triton reads it once, when imported
    os.environ["TRITON_INTERPRET"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # inherited by the commands that tests run
os.environ["WANDB_MODE"] = "offline"
os.environ["BIMBA_INDEX_DIR"] = tempfile.mkdtemp(prefix="bimba-test-index-")  # not the user's cache
atexit.register(shutil.rmtree, os.environ["BIMBA_INDEX_DIR"])
sys.path.insert(0, str(Path(__file__).parent))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed may hold names that are no UTF-8; the process that tests run in cannot send those on."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine is an error."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if host is not None and host not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"A test tried to reach {host!r}; tests use no network.")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)
