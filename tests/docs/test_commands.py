"""Every command and program that is shown is run; or it says what it needs, and then its tool would take it."""

from __future__ import annotations

import shlex

import pytest

from tests.docs.checks import check
from tests.docs.fences import Command, all_fences, command_in, commands_of, fences_of, shell_commands

pytestmark = pytest.mark.timeout(900)  # the first one imports everything and trains; machines may be busy
COMMANDS = shell_commands()
RUN = ("python", "bimba", "lmms-eval")
PROGRAMS = [fence for fence in all_fences() if fence.language == "python" and fence.title is None]


def name_of(command: Command) -> str:
    return f"{command.where} {shlex.join(command.words)[:60]}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.needs], ids=name_of)
def test_it_runs(command, shell):
    assert command.words[0] in RUN, f"{command.where}: say what {command.words[0]} needs: `# needs the network`"
    code, output = shell.run(command)
    assert code == 0, f"{command.where}: {shlex.join(command.words)} ended with {code}:\n{output[-3000:]}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.needs], ids=name_of)
def test_it_would_be_taken(command, shell):
    check(command, shell)


@pytest.mark.parametrize("page", sorted({f.where.rsplit(":", 1)[0] for f in PROGRAMS}))
def test_python_runs(page, shell, tmp_path):
    """The blocks of a page, one after the other."""
    program = tmp_path / "program.py"
    blocks = [fence.body for fence in PROGRAMS if fence.where.rsplit(":", 1)[0] == page]
    program.write_text("\n".join(blocks))
    code, output = shell.run(Command(page, ("python", str(program))))
    assert code == 0, output


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("python train.py trainr.max_steps=5", "trainr"),
        ("python train.py -m model/compressor=mamba,pol", ""),
        ("python trian.py", "trian.py"),
        ("bimba map", "bimba map"),
        ("make dmeo", "dmeo"),
        ('pip install -e ".[dve]"', "dve"),
        ("lmms-eval --model bimba --tasks bimba_needel", "bimba_needel"),
    ],
)
def test_a_misspelled_command_is_seen(line, problem, shell):
    command = command_in(line, "here")
    if command.words[1:2] == ("train.py",) and "-m" in command.words:
        command = command_in(line.replace("mamba,", ""), "here")
    with pytest.raises(AssertionError, match=problem):
        check(command, shell)


def test_a_need_holds_for_what_follows_in_its_block():
    (fence,) = fences_of("```bash\na\n# needs a GPU, hours\nb  # a comment\nX=1 c \\\n  d\n```\n", "page")
    first, second, third = commands_of(fence)
    assert (first.needs, second.needs) == ((), ("a GPU", "hours"))
    assert (second.words, second.where) == (("b",), "page:4")
    assert (third.words, third.variables) == (("c", "d"), (("X", "1"),))


def test_what_a_test_appends_stands_above_the_block():
    (fence,) = fences_of("<!-- test: limit=2 -->\n```bash\na\n# needs hours\nb\n```\n", "page")
    assert [command.words for command in commands_of(fence)] == [("a", "limit=2"), ("b",)]


@pytest.mark.parametrize("body", ["# needs money\na\n", "a | b\n"])
def test_unknown_needs_and_pipes_are_refused(body):
    (fence,) = fences_of(f"```bash\n{body}```\n", "page")
    with pytest.raises(AssertionError):
        commands_of(fence)
