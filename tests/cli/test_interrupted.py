"""Ctrl-C, sent to the program while it works."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest
from as_process import start

SLOW = [sys.executable, str(Path(__file__).with_name("slow_program.py"))]


@pytest.mark.parametrize("where", ["loading", "decoding", "answering"])
def test_ctrl_c_ends_it_with_130_and_without_a_trace(where, checkpoint, video, tmp_path):
    path = shutil.copy(video, tmp_path / "slow.mp4")
    with start([*SLOW, where, "ask", str(path), "Who?", "--checkpoint", checkpoint]) as asked:
        while f"<{where}>" not in (line := asked.stderr.readline()):
            assert line == "", line
            assert asked.poll() is None
        asked.send_signal(signal.SIGINT)
        out, err = asked.communicate(timeout=60)
    assert asked.returncode == 130
    assert out == ""
    assert [line for line in err.splitlines() if line != f"<{where}>"] == ["interrupted"]


def test_through_a_pipe_ctrl_c_ends_a_chat(checkpoint, video):
    import subprocess

    with start([*SLOW, "answering", "chat", video, "--checkpoint", checkpoint], stdin=subprocess.PIPE) as chat:
        chat.stdin.write("Who?\n")
        chat.stdin.flush()
        while "<answering>" not in chat.stderr.readline():
            assert chat.poll() is None
        chat.send_signal(signal.SIGINT)
        _, err = chat.communicate(timeout=60)
    assert chat.returncode == 130
    said = [line for line in err.splitlines() if line != "<answering>"]  # which its thread may go on with for a moment
    assert said[-1] == "interrupted"
    assert "Traceback" not in err
