"""``bimba`` as a process of its own: this checkout's code, as a user has it, without Triton's interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "BIMBA_DEBUG")}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")]), "TERM": "xterm"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bimba", *arguments]


def hear_ctrl_c() -> None:
    """In a new process: processes in the background, as tests may be, do not hear it, nor do those that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(arguments: list[str], **settings) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_ctrl_c,
        **settings,
    )
