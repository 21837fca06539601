"""``bimba chat``, through a pipe and at a terminal."""

from __future__ import annotations

import io
import re
import shutil
import sys
from pathlib import Path

import pexpect
from as_process import command, environment, hear_ctrl_c
from tiny_checkpoint import MAX_LENGTH, NUM_FRAMES, write_video

from bimba import cli
from bimba.inference import VideoQA

SLOW = [sys.executable, str(Path(__file__).with_name("slow_program.py"))]
PROMPT = "\r\n> "


def chat(checkpoint, video, lines, monkeypatch, *arguments) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return cli.main(["chat", video, "--checkpoint", checkpoint, "--device", "cpu", "--max-new-tokens", "5", *arguments])


def answers(checkpoint, video, questions, num_frames=None) -> list[str]:
    talk = VideoQA.from_pretrained(checkpoint, device="cpu").encode(video, num_frames).chat()
    return ["".join(talk.say(question, 5)).strip() for question in questions]


def test_a_pipe_has_the_answers_and_nothing_else(checkpoint, video, monkeypatch, capsys):
    assert chat(checkpoint, video, ["Who?", "", "  When? "], monkeypatch) == 0
    captured = capsys.readouterr()
    assert [line.strip() for line in captured.out.splitlines()] == answers(checkpoint, video, ["Who?", "When?"])
    assert captured.err == ""


def test_reset_and_other_videos_begin_anew(checkpoint, video, tmp_path, monkeypatch, capsys):
    other = str(write_video(tmp_path / "another film.mp4", seed=5))
    lines = ["Who?", "/reset", "When?", f"/video '{other}'", "When?", "/frames 2", "When?", "/quit", "Never asked"]
    assert chat(checkpoint, video, lines, monkeypatch) == 0
    captured = capsys.readouterr()
    assert [line.strip() for line in captured.out.splitlines()] == [
        *answers(checkpoint, video, ["Who?"]),
        *answers(checkpoint, video, ["When?"]),
        *answers(checkpoint, other, ["When?"]),
        *answers(checkpoint, other, ["When?"], num_frames=2),
    ]
    assert captured.err == "The conversation starts anew. The video stays read.\n"


WRONG = {
    "/video": "/video takes the path of a video file",
    "/video nowhere.mp4": "nowhere.mp4: No such file",
    "/frames many": "/frames takes a number of frames, not 'many'",
    "/frames 0": "num_frames is 0; expected 1 or more",
    "/frames 13": "12 frames, and 13 were asked for",
    "/film x": "There is no command /film; /help lists",
    "x" * MAX_LENGTH: f"this model takes at most {MAX_LENGTH}. Start a new conversation (reset)",
}


def test_a_line_that_cannot_be_done_costs_itself(checkpoint, video, monkeypatch, capsys):
    assert chat(checkpoint, video, ["Who?", *WRONG, "When?"], monkeypatch) == 1
    captured = capsys.readouterr()
    assert [line.strip() for line in captured.out.splitlines()] == answers(checkpoint, video, ["Who?", "When?"])
    for line, message in zip(captured.err.splitlines(), WRONG.values(), strict=True):
        assert line.startswith("error: ")
        assert message in line


def test_a_line_that_is_not_utf8_costs_itself(checkpoint, video, monkeypatch, capsys):
    lines = io.TextIOWrapper(io.BytesIO(b"f\xfcr?\nWho?\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", lines)
    assert cli.main(["chat", video, "--checkpoint", checkpoint, "--device", "cpu", "--max-new-tokens", "5"]) == 1
    captured = capsys.readouterr()
    assert [line.strip() for line in captured.out.splitlines()] == answers(checkpoint, video, ["Who?"])
    assert captured.err.startswith("error: A text has bytes that are not UTF-8") and captured.err.count("\n") == 1


def test_help_names_the_commands(checkpoint, video, monkeypatch, capsys):
    assert chat(checkpoint, video, ["/help"], monkeypatch) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.findall(r"^/\w+", captured.err, re.MULTILINE) == ["/help", "/reset", "/video", "/frames", "/quit"]


def at_terminal(arguments: list[str]) -> pexpect.spawn:
    return pexpect.spawn(
        arguments[0],
        arguments[1:],
        env=environment(),
        encoding="utf-8",
        timeout=250,  # less than that of the test
        dimensions=(40, 200),
        preexec_fn=hear_ctrl_c,
    )


def test_a_conversation_at_a_terminal(checkpoint, video):
    first, second = answers(checkpoint, video, ["Who?", "When?"])
    with at_terminal(command("chat", video, "--checkpoint", checkpoint, "--max-new-tokens", "5")) as terminal:
        for stage in ("loading the model", "decoding the video", "encoding frames", "prefill"):
            terminal.expect_exact(stage)
        terminal.expect(rf"{NUM_FRAMES} frames, 24 video tokens; loading [\d.]+ s, decoding [\d.]+ s, encoding")
        terminal.expect_exact(PROMPT)
        terminal.sendline("Who?")
        terminal.expect_exact(first)
        terminal.expect(r"\(5 tokens, \d+ tokens/s, [\d.]+ s; \d+ of 512 tokens used\)")
        terminal.expect_exact(PROMPT)
        terminal.sendline("When")
        terminal.expect_exact(PROMPT)
        terminal.sendline("/reset")
        terminal.expect_exact(PROMPT)
        terminal.sendline("Who?")
        terminal.expect_exact(PROMPT)
        terminal.send("Whex\x7fn?\r")  # line editing: backspace takes the x away
        terminal.expect_exact(second)
        terminal.expect_exact(PROMPT)
        terminal.sendline("/video nowhere.mp4")
        terminal.expect_exact("error: ")
        terminal.expect_exact(PROMPT)
        terminal.sendintr()  # with nothing going on
        terminal.expect_exact("/quit or Ctrl-D ends.")
        terminal.expect_exact("> ")
        terminal.sendeof()
        terminal.expect(pexpect.EOF)
    assert terminal.exitstatus == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(checkpoint, video):
    with at_terminal([*SLOW, "answering", "chat", video, "--checkpoint", checkpoint]) as terminal:
        terminal.expect_exact("Ctrl-D ends.")
        terminal.sendline("Who?")
        for _ in range(3):
            terminal.expect_exact("<answering>")
        terminal.sendintr()
        terminal.expect_exact("stopped")
        terminal.expect_exact("> ")
        terminal.sendline("/quit")
        terminal.expect(pexpect.EOF)
        assert "Traceback" not in terminal.before
    assert terminal.exitstatus == 0


def test_ctrl_c_stops_the_reading_of_another_video_and_keeps_the_one_before(checkpoint, video, tmp_path):
    shutil.copy(video, tmp_path / "slow.mp4")
    (answer,) = answers(checkpoint, video, ["Who?"])
    arguments = ["decoding", "chat", video, "--checkpoint", checkpoint, "--max-new-tokens", "5"]
    with at_terminal([*SLOW, *arguments]) as terminal:
        terminal.expect_exact("Ctrl-D ends.")
        terminal.sendline(f"/video {tmp_path / 'slow.mp4'}")
        terminal.expect_exact("<decoding>")
        terminal.sendintr()
        terminal.expect_exact("stopped")
        terminal.sendline("Who?")
        terminal.expect_exact(answer)
        terminal.sendline("/quit")
        terminal.expect(pexpect.EOF)
    assert terminal.exitstatus == 0


def test_ask_at_a_terminal_says_what_it_does_and_how_long_it_took(checkpoint, video):
    answer = VideoQA.from_pretrained(checkpoint, device="cpu").encode(video).ask("Who?", 5)
    arguments = ("ask", video, "Who?", "--checkpoint", checkpoint, "--max-new-tokens", "5")
    with at_terminal(command(*arguments)) as terminal:
        for stage in ("loading the model", "decoding the video", "encoding frames", "prefill", "answering", answer):
            terminal.expect_exact(stage)
        terminal.expect(
            rf"{NUM_FRAMES} frames, 24 video tokens; loading [\d.]+ s, decoding [\d.]+ s, encoding [\d.]+ s, "
            r"prefill [\d.]+ s, answering [\d.]+ s \(5 tokens, \d+ tokens/s\)"
        )
        terminal.expect(pexpect.EOF)
    assert terminal.exitstatus == 0
