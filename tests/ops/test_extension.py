"""How C++ is compiled: once, for this processor, and what happens where that cannot be."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bimba.ops import extension

ROOT = Path(__file__).parents[2]

COMPILE = """
import logging; logging.basicConfig(level=logging.INFO, format="%(message)s")
from bimba.ops.selective_scan import cpp
print(cpp.BACKEND.unavailable())
"""


def start(**environment):
    command = [sys.executable, "-c", COMPILE]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_compile_once(tmp_path):
    processes = [start(BIMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [out for out, _ in outputs] == ["None\n", "None\n"], outputs
    assert sum("Compiling" in err for _, err in outputs) == 1
    assert len(list(tmp_path.glob("bimba_scan_*.so"))) == 1


def test_a_library_that_is_broken_is_compiled_again(tmp_path):
    start(BIMBA_CACHE_DIR=str(tmp_path)).communicate()
    (library,) = tmp_path.glob("bimba_scan_*.so")
    library.write_bytes(b"")
    out, err = start(BIMBA_CACHE_DIR=str(tmp_path)).communicate()
    assert out == "None\n" and "compiled again" in err and library.stat().st_size > 0


def test_a_compilation_that_is_killed_leaves_no_library(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\nfor output; do :; done\necho half > "$output"\nkill -9 $PPID\n'  # what comes last follows -o
    )
    compiler.chmod(0o755)
    cache = tmp_path / "cache"
    start(BIMBA_CACHE_DIR=str(cache), CXX=str(compiler)).communicate()
    assert [path.read_text() for path in cache.rglob("bimba_scan.so")] == ["half\n"]
    assert not list(cache.glob("*.so"))


def test_a_cache_of_somebody_else_is_read(tmp_path):
    start(BIMBA_CACHE_DIR=str(tmp_path)).communicate()
    (tmp_path / "lock").touch()
    for path in tmp_path.glob("*.lock"):
        path.chmod(0o444)
    tmp_path.chmod(0o555)
    out, err = start(BIMBA_CACHE_DIR=str(tmp_path)).communicate()
    tmp_path.chmod(0o755)
    assert out == "None\n" and "Compiling" not in err


def test_without_a_compiler_the_reason_is_given(tmp_path):
    out, _ = start(BIMBA_CACHE_DIR=str(tmp_path), PATH="/nowhere", CXX="").communicate()
    assert "there is no C++ compiler here" in out and "install one" in out


def test_a_compiler_may_be_named_with_arguments(tmp_path):
    called = tmp_path / "called"
    through = tmp_path / "through"  # as ccache is
    through.write_text(f'#!/bin/sh\necho "$1" > {called}\nexec "$@"\n')
    through.chmod(0o755)
    out, _ = start(BIMBA_CACHE_DIR=str(tmp_path / "cache"), CXX=f"{through} c++").communicate()
    assert out == "None\n" and called.read_text() == "c++\n"


@pytest.mark.parametrize(
    ("named", "expected"), [("clang++-99 -v", "clang++-99 is no program here"), ("'c++", "cannot be read as a command")]
)
def test_a_compiler_asked_for_by_name_is_not_replaced(named, expected, tmp_path):
    out, _ = start(BIMBA_CACHE_DIR=str(tmp_path / "cache"), CXX=named).communicate()
    assert "$CXX" in out and expected in out
    assert not list(tmp_path.glob("cache/*.so"))


def test_a_compiler_that_fails_is_no_end(tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho no licence >&2; exit 3\n")
    broken.chmod(0o755)
    out, _ = start(BIMBA_CACHE_DIR=str(tmp_path / "cache"), CXX=str(broken)).communicate()
    assert "could not compile bimba_scan" in out
    assert not list((tmp_path / "cache").glob("*.so"))


def test_a_cache_that_cannot_be_written_to_is_passed_over(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with caplog.at_level("INFO"):
        folder = extension._writable(tmp_path / "file", Path("lock"))
    assert folder.is_dir() and folder.parent == tmp_path
    assert "cannot be written to" in caplog.text


@pytest.fixture
def open_to_all(monkeypatch):
    """Temporary folders are made where anybody may, whatever $TMPDIR says."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")


@contextlib.contextmanager
def somebody_else():
    """Not root, to whom nothing is closed."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_cache_that_is_closed_to_the_user_is_passed_over(tmp_path, caplog, open_to_all):
    closed = tmp_path / "closed"  # such as the home folder of the user that a container's image was made for
    closed.mkdir(mode=0o000)
    with somebody_else(), caplog.at_level("INFO"):
        assert extension._load(closed / "bimba" / "bimba_scan.so") is None
        folder = extension._writable(closed / "bimba", Path("lock"))
    assert folder.is_dir() and closed not in folder.parents
    assert "cannot be written to" in caplog.text


def test_a_lock_of_somebody_else_is_passed_over(open_to_all):
    with tempfile.TemporaryDirectory() as name:  # tmp_path is closed to others
        shared = Path(name)
        shared.chmod(0o777)
        (shared / "lock").touch()
        (shared / "lock").chmod(0o444)
        with somebody_else():
            folder = extension._writable(shared, Path("lock"))
        assert folder.is_dir() and folder != shared


class FullDisk(io.BytesIO):
    """A file that could be made, but not filled."""

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_cache_on_a_full_disk_is_passed_over(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: FullDisk())
    with caplog.at_level("INFO"):
        folder = extension._writable(tmp_path / "cache", Path("lock"))
    assert folder.is_dir() and folder.parent == tmp_path and folder.name != "cache"
    assert "No space left on device" in caplog.text


def test_another_processor_has_another_library(monkeypatch):
    here = extension.key_of(["c++"], [], [])
    monkeypatch.setattr(extension, "_processor", lambda: "a processor without AVX-512")
    assert extension.key_of(["c++"], [], []) != here
