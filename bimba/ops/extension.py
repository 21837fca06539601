"""C++ sources of this package to a library, compiled on first use for the processor that runs it."""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock

from bimba.types import BimbaError, first_line

log = logging.getLogger(__name__)

# OpenMP only where torch brings the library along (libgomp): a second one would fight with torch's over the cores.
_THREADS = "-fopenmp" if platform.system() == "Linux" else "-pthread"
FLAGS = ("-O3", "-std=c++17", "-march=native", "-fno-math-errno", _THREADS)


def build(name: str, sources: Sequence[Path], headers: Sequence[Path] = ()) -> ctypes.CDLL:
    """The library of some C++ files; compiled unless this processor, compiler and text were seen before.

    Two processes that ask at once compile once. The folder is ``$BIMBA_CACHE_DIR``, or ``bimba`` in the user's cache;
    if that cannot be written to, a temporary one that goes with this process.

    Raises:
        BimbaError: no compiler, or $CXX names none, or it fails, or what it made cannot be loaded; the message says
            what to do.
    """
    compiler = _compiler()
    try:
        file = Path(f"{name}_{key_of(compiler, sources, headers)}.so")
        return _load(_cache_folder() / file) or _build(name, compiler, sources, file)
    except (OSError, RuntimeError) as error:
        raise BimbaError(
            f"{shlex.join(compiler)} could not compile {name} ({first_line(error)}); BIMBA works without, slower"
        ) from error


def _compiler() -> list[str]:
    """The program and its first arguments: $CXX may hold some, as in "ccache g++"."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BimbaError(f"$CXX cannot be read as a command ({error}): {os.environ['CXX']}") from error
    if named:
        if (program := shutil.which(named[0])) is None:
            raise BimbaError(f"$CXX is {shlex.join(named)}, and {named[0]} is no program here; unset it or correct it")
        return [program, *named[1:]]
    if (program := shutil.which("c++") or shutil.which("g++")) is None:
        raise BimbaError("there is no C++ compiler here (c++, g++ or $CXX); install one, such as Debian's package g++")
    return [program]


def _load(library: Path) -> ctypes.CDLL | None:
    """A library that was compiled before; None if there is none, one that another system made, or one closed to us."""
    try:
        return ctypes.CDLL(str(library)) if library.exists() else None
    except OSError as error:
        log.info("%s cannot be loaded here (%s) and is compiled again", library, error)
        return None


def _build(name: str, compiler: Sequence[str], sources: Sequence[Path], file: Path) -> ctypes.CDLL:
    """Compiles beside the place where the library belongs, and moves it there when it is whole and loads."""
    lock = file.with_suffix(".lock")
    cache = _writable(_cache_folder(), lock)
    with FileLock(cache / lock):
        if (library := _load(cache / file)) is not None:
            return library  # another process was quicker
        log.info("Compiling %s for this processor, once; it goes to %s", name, cache)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=cache) as folder:
            made = Path(folder) / f"{name}.so"
            _compile(compiler, sources, made)
            library = ctypes.CDLL(str(made))
            os.replace(made, cache / file)
        return library


def key_of(compiler: Sequence[str], sources: Sequence[Path], headers: Sequence[Path]) -> str:
    """A hash of everything that a library depends on."""
    key = hashlib.sha256()
    for part in (*compiler, _processor(), torch.__version__, platform.machine(), *FLAGS):
        key.update(part.encode() + b"\0")
    for path in (*sources, *headers):
        key.update(path.read_bytes())
    return key.hexdigest()[:16]


def _compile(compiler: Sequence[str], sources: Sequence[Path], library: Path) -> None:
    """By the compiler alone: the sources know nothing of torch, so neither its headers nor a build tool are needed.

    Raises:
        RuntimeError: the compiler failed; the message is the first line of its own that names an error.
    """
    names = [str(source) for source in sources]
    quiet = "-Wno-maybe-uninitialized"  # GCC 12 warns of its own headers
    command = [*compiler, *FLAGS, quiet, "-shared", "-fPIC", *names, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise RuntimeError(next((line for line in lines if "error" in line), lines[0]))


@functools.cache
def _processor() -> str:
    """What the processor can do: a binary made for another must not run here, even from a shared home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return " ".join(sorted(flags.partition(":")[2].split())) or platform.processor()


def _cache_folder() -> Path:
    if named := os.environ.get("BIMBA_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bimba"


def _writable(folder: Path, lock: Path) -> Path:
    """``folder``, or a temporary one that is deleted when this process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / lock).open("a").close()  # in a shared folder it may be that of another user, who was cut off
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 2**20)  # a full disk says so here, not halfway through a compilation
            file.flush()
        return folder
    except OSError as error:
        temporary = Path(tempfile.mkdtemp(prefix="bimba-"))  # a new one: nobody else's
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        log.info("The cache folder %s cannot be written to (%s); compiled code goes to %s", folder, error, temporary)
        return temporary
