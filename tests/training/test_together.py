"""A process that waits for one that has failed is ended, although that one is still there."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(rank, port):
    command = [sys.executable, "-m", "tests.training.ending_program", str(rank), str(port)]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, **pipes)


def test_who_waits_for_a_process_that_failed_is_ended():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, second = start(0, port), start(1, port)
    try:
        # In an exchange that the second never comes to: without word of it, this would take torch's half an hour.
        said, errors = first.communicate(timeout=120)
        assert (first.returncode, said) == (1, ""), errors
        assert second.poll() is None
    finally:
        first.kill()
        said, errors = second.communicate("\n", timeout=120)
    assert (second.returncode, said) == (1, "only here 1\n"), errors
