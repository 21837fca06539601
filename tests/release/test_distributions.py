"""What is in the wheel and in the source distribution."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import bimba
from tests.release.conftest import ROOT

PACKAGES = ("bimba", "lmms_eval_plugin", "hydra_plugins")


def files_of_the_tree(*tops: str) -> set[str]:
    """The tracked files below some folders, links to folders followed; in a source distribution, all that are there."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "--", *tops], cwd=ROOT, capture_output=True, text=True, check=True)
        found = [Path(line) for line in listed.stdout.splitlines()]
    else:
        found = [
            path.relative_to(ROOT)
            for top in tops
            for path in ROOT.glob(f"{top}/**/*")
            if "__pycache__" not in path.parts
        ]
    names = set()
    for path in found:
        below = (ROOT / path).rglob("*") if (ROOT / path).is_dir() else [ROOT / path]
        names |= {one.relative_to(ROOT).as_posix() for one in below if one.is_file() and "__pycache__" not in one.parts}
    return names


def test_the_wheel_holds_all_of_the_packages_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files_of_the_tree(*PACKAGES)


def test_configurations_and_scripts_are_files_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        for path in (ROOT / "train.py", ROOT / "evaluate.py", *(ROOT / "conf").rglob("*.yaml")):
            assert archive.read(f"bimba/scripts/{path.relative_to(ROOT).as_posix()}") == path.read_bytes()


def test_the_source_distribution_holds_what_builds_and_tests_it(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = files_of_the_tree(*PACKAGES, "tests", "conf", "docs", "benchmarks", "notebooks")
    assert not needed - names
    assert {"train.py", "evaluate.py", "Makefile", "CHANGELOG.md", "LICENSE", "pyproject.toml", "MANIFEST.in"} <= names
    assert not [name for name in names if re.search(r"__pycache__|\.pyc$|^(outputs|data|\.venv)/", name)]


def test_the_metadata_say_what_this_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_string(archive.read(name).decode())
    assert metadata["Version"] == bimba.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_payload().startswith("# BIMBA")
    classifiers = metadata.get_all("Classifier")
    versions = [int(c.rpartition(".")[2]) for c in classifiers if re.search(r"Python :: 3\.\d+$", c)]
    assert f">=3.{min(versions)}" == metadata["Requires-Python"]


def test_the_version_is_written_once_and_the_changelog_has_it():
    assert "version =" not in (ROOT / "pyproject.toml").read_text().partition("[project]")[2].partition("[")[0]
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", heading) for heading in headings[1:])


@pytest.mark.parametrize("name", ["train.py", "evaluate.py", "conf"])
def test_the_packages_scripts_are_the_repositorys(name):
    if (ROOT / ".git").exists():
        assert (ROOT / "bimba/scripts" / name).readlink() == Path("../..") / name
