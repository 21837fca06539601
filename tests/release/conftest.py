"""The distributions, built once, and the wheel installed where nothing of the checkout can be imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IGNORED = ("__pycache__", "*.egg-info", "build", "dist", "outputs", "data", ".*", "multirun", "wandb")


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What a command prints; it has to succeed, and knows nothing of the checkout."""
    forgotten = ("PYTHONPATH", "BIMBA_ROOT", "BIMBA_NEEDLE_ROOT", "MYPYPATH")
    inherited = {key: value for key, value in os.environ.items() if key not in forgotten}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def distributions(tmp_path_factory) -> Path:
    """A folder with the source distribution of this tree, and the wheel that was built from it, without a network."""
    folder = tmp_path_factory.mktemp("release")
    tree = folder / "tree"  # a copy: building writes into it
    shutil.copytree(ROOT, tree, symlinks=True, ignore=lambda at, names: ignored_at_the_top(Path(at), names))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, tree, cwd=folder)
    return folder


def ignored_at_the_top(folder: Path, names: list[str]) -> set[str]:
    patterns = IGNORED if folder == ROOT else ("__pycache__",)
    return set(shutil.ignore_patterns(*patterns)(str(folder), names))


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    (found,) = distributions.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def sdist(distributions: Path) -> Path:
    (found,) = distributions.glob("*.tar.gz")
    return found


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory) -> Path:
    """The ``bin`` folder of an environment with the wheel in it, and beside it what this environment has.

    The other packages come from a line of a ``.pth`` file. Python does not read the ``.pth`` files in that folder, so
    an editable installation of the checkout does not count.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel, cwd=folder)
    return folder / "bin"
