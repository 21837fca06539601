"""The fenced blocks of README, CONTRIBUTING and docs, and the commands in them. CONTRIBUTING.md has the rules."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What a command that is not run here may need; the reader sees it as a comment above the command.
NEEDS = {
    "a GPU", "GPUs", "a terminal", "minutes", "hours", "the network", "an object store", "Slurm", "several machines",
    "the weights", "your data", "LLaVA-Video-178K", "the benchmarks' videos", "your runs", "tensorboard", "trackio",
}  # fmt: skip

FENCE = re.compile(
    r"(?:^ *<!-- test: (?P<appended>[^\n]+) -->\n+)?"
    r"^(?P<indent> *)(?P<ticks>```+)(?P<info>[^\n]*)\n(?P<body>.*?)^(?P=indent)(?P=ticks)$",
    re.M | re.S,
)
INFO = re.compile(r'(?P<language>\w*)(?: title="(?P<title>[^"]+)")?')
TOOLS = ("python", "bimba", "lmms-eval", "make", "pip", "torchrun", "accelerate", "sbatch", "mkdocs", "pytest", "$")


def pages() -> list[Path]:
    """Every page that a person reads, README first."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


@dataclass(frozen=True)
class Fence:
    """One block: ``appended`` is what the test adds to each of its commands."""

    where: str  # page:line
    language: str
    title: str | None
    body: str
    appended: str


@dataclass(frozen=True)
class Command:
    """One command; it is run unless it needs something."""

    where: str
    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()


def fences_of(text: str, name: str) -> list[Fence]:
    """The blocks of a page's text, in order."""
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("info")) + 1
        where = f"{name}:{line}"
        info = INFO.fullmatch(match["info"])
        assert info, f'{where}: expected ```LANGUAGE or ```LANGUAGE title="...", found ```{match["info"]}'
        body = textwrap.dedent(match["body"])
        found.append(Fence(where, info["language"], info["title"], body, match["appended"] or ""))
    return found


def all_fences() -> list[Fence]:
    return [fence for page in pages() for fence in fences_of(page.read_text(), str(page.relative_to(ROOT)))]


def commands_of(fence: Fence) -> list[Command]:
    """One command a line; ``\\`` continues it, ``# needs ...`` holds for what follows in the block."""
    page, line = fence.where.rsplit(":", 1)
    needs: tuple[str, ...] = ()
    found = []
    number = int(line)
    for text in fence.body.replace("\\\n", "\0").split("\n"):
        number += 1
        here = f"{page}:{number}"
        number += text.count("\0")
        text = text.replace("\0", " ").strip()
        if text.startswith("# needs "):
            needs = tuple(text.removeprefix("# needs ").split(", "))
            unknown = set(needs) - NEEDS
            assert not unknown, f"{here}: {unknown} is not among the needs that tests/docs/fences.py lists"
        elif command := command_in(text, here):
            appended = () if needs else tuple(shlex.split(fence.appended))
            found.append(replace(command, words=(*command.words, *appended), needs=needs))
    return found


def command_in(line: str, where: str) -> Command | None:
    """The command of a line, without its comment; None if there is none."""
    words = shlex.split(line, comments=True)
    assert not {"|", "&&", ";", ">", "&"} & set(words), f"{where}: expected one plain command, found {line!r}"
    variables = []
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        variables.append((name, value))
    return Command(where, tuple(words), tuple(variables)) if words else None


def shell_commands() -> list[Command]:
    """All commands of all pages and of the headers in conf/, each once: one that is run somewhere, is run."""
    found: dict[tuple[object, ...], Command] = {}
    for fence in all_fences():
        if fence.language == "bash":
            for command in commands_of(fence):
                found.setdefault((command.words, command.variables, bool(command.needs)), command)
    for command in config_headers():
        found.setdefault((command.words, command.variables, True), command)
    return list(found.values())


def config_headers() -> list[Command]:
    """The commands that the files of conf/ open with. They are composed, not run."""
    found = []
    for path in sorted(ROOT.glob("conf/**/*.yaml")):
        lines = re.sub(r"\\\n#\s*", "", path.read_text()).splitlines()  # a continued line is one
        for number, line in enumerate(lines, start=1):
            match = re.match(r"#\s+(python (?:train|evaluate)\.py.*?|torchrun .*?)(?:\s{3,}.*)?$", line)
            if match and " ..." not in match[1]:  # that is a remark on commands, and none
                text = re.sub(r"<[^>]*>|\.\.\.", "FOLDER", match[1])
                if command := command_in(text, f"{path.relative_to(ROOT)}:{number}"):
                    found.append(replace(command, needs=("hours",)))
    return found
