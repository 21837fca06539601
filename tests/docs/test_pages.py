"""Fences are of a kind that is tested, code that is quoted stands in its file, links lead somewhere."""

from __future__ import annotations

import re
import textwrap

import pytest
import yaml

from tests.docs.fences import ROOT, TOOLS, all_fences, pages

FENCES = all_fences()
LANGUAGES = {"bash", "python", "yaml", "text", "bibtex"}
GAP = re.compile(r"^\s*(?:#\s*)?\.\.\.$", re.M)


def test_every_block_is_of_a_kind_that_is_tested():
    wrong = [f.where for f in FENCES if f.language not in LANGUAGES]
    assert not wrong, f"expected one of {LANGUAGES}: bash is run, python is run, text is no command; at {wrong}"


def test_no_command_hides_in_text():
    wrong = []
    for fence in FENCES:
        if fence.language == "text":
            wrong += [f"{fence.where}: {line}" for line in fence.body.splitlines() if line.split(" ")[0] in TOOLS]
    assert not wrong, "commands belong into ```bash:\n" + "\n".join(wrong)


@pytest.mark.parametrize("fence", [f for f in FENCES if f.language == "yaml"], ids=lambda fence: fence.where)
def test_yaml_is_yaml(fence):
    assert yaml.safe_load(fence.body)


@pytest.mark.parametrize("fence", [f for f in FENCES if f.title], ids=lambda fence: fence.where)
def test_quoted_code_stands_in_its_file(fence):
    """Between lines of three dots, word for word; how far it is indented does not count."""
    source = (ROOT / fence.title).read_text()
    lines = [line.strip() for line in source.splitlines()]
    for part in GAP.split(fence.body):
        wanted = [line.strip() for line in textwrap.dedent(part).strip("\n").splitlines()]
        found = any(lines[i : i + len(wanted)] == wanted for i in range(len(lines)))
        assert found, f"{fence.where}: {fence.title} has no longer, in one piece:\n{part}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    files = [target for target in targets if target and not target.startswith(("http", "mailto"))]
    assert not [target for target in files if not (page.parent / target).exists()]


def test_commands_in_running_text_are_of_files_and_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    commands = subcommands()
    wrong = []
    for page in pages():
        for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text()):
            program, *words = code.split()
            there = True
            if program == "make" and words:
                there = words[0] in targets
            elif program == "python" and words and words[0].endswith(".py"):
                there = (ROOT / words[0]).is_file()
            elif program == "bimba" and words and words[0].isalpha() and words[0].islower():
                there = words[0] in commands
            wrong += [] if there else [f"{page.relative_to(ROOT)}: {code}"]
    assert not wrong, "\n".join(wrong)


def subcommands() -> set[str]:
    from bimba.cli import build_parser

    (choices,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    return set(choices)
