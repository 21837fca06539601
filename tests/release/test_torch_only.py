"""``pip install --no-deps bimba`` beside torch: the compressors and ``bimba.ops`` need nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("torch_only.py")
DOCS = [ROOT / "README.md", ROOT / "docs" / "compressor_alone.md"]


def run_torch_only(folder: Path, *arguments: str) -> dict[str, object]:
    """What ``torch_only.py`` says of the bimba in ``folder``."""
    site = sysconfig.get_path("purelib")
    command = [sys.executable, "-S", "-W", "ignore", str(PROGRAM), str(folder), site, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROGRAM.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def examples() -> list[str]:
    """The documents' programs that use the compressor alone."""
    blocks = [code for path in DOCS for code in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)]
    return [code for code in blocks if re.findall(r"^from bimba\.(?:model\.compressor|ops)", code, re.MULTILINE)]


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> dict[str, object]:
    programs = tmp_path_factory.mktemp("examples")
    for number, code in enumerate(examples()):
        (programs / f"{number}.py").write_text(code)
    return run_torch_only(ROOT, *map(str, sorted(programs.glob("*.py"))))


def test_every_compressor_runs_forward_and_backward(result):
    names = {path.stem for path in (ROOT / "conf/model/compressor").glob("*.yaml")}
    assert result["kinds"] == dict.fromkeys(names, True)
    assert result["map"] == [2, 2, 4, 4]  # what the second layer, of every second frame, selected in each direction


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="there is no C++ compiler")
def test_the_compiled_scan_computes_what_the_plain_one_does(result):
    for what in ("outputs", "gradients"):
        compiled, plain = (torch.tensor(result["scans"][backend][what]) for backend in ("cpp", "chunked"))
        assert plain.abs().max() > 0.1
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)


def test_nothing_above_the_compressors_is_imported(result):
    ours = [name for name in result["modules"] if name.partition(".")[0] == "bimba"]
    above = [name for name in ours if not re.match(r"bimba(\.(types|registration|ops|model)\b|$)", name)]
    assert "bimba.model.compressor.mamba" in ours and not above
    assert Path(result["file"]).parents[1] == ROOT
    others = {name.partition(".")[0] for name in result["modules"]}
    assert "torch" in others and not others & {"numpy", "transformers", "lightning", "hydra", "yaml", "ninja"}


def test_a_name_that_needs_more_says_what(result):
    assert result["missing"].startswith("BimbaError: bimba.VideoQA needs the package transformers, which is not")
    assert "pip install transformers" in result["missing"]


def test_the_documents_examples_run(result):
    assert len(examples()) >= 2 and result["examples"] == len(examples())
