"""The notebook runs as it stands, its pictures are in it, and its comparison comes out as its text says."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
PATH = ROOT / "notebooks" / "selective_scan_compression.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook) -> str:
    """What its cells printed; on stderr libraries say what they miss, which differs from one machine to the next."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")


def percent(pattern: str, text: str) -> int:
    return int(re.search(pattern + r".*?(\d+) %", text)[1])


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def executed(committed, tmp_path_factory):
    """Run anew, in a folder of its own and with this tree's package."""
    notebook = nbformat.v4.new_notebook(cells=[*committed.cells], metadata=committed.metadata)
    notebook = nbformat.from_dict(notebook)  # a copy: the committed one keeps its outputs
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folder = tmp_path_factory.mktemp("notebook")
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    assert not list(folder.iterdir())  # it leaves nothing behind
    return notebook


def test_it_is_committed_with_its_pictures_and_small(committed):
    assert PATH.stat().st_size < 400_000
    assert [cell.execution_count for cell in code_cells(committed)] == list(range(1, len(code_cells(committed)) + 1))
    outputs = [output for cell in code_cells(committed) for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not re.search(r"/(work|tmp|home|root)/", PATH.read_text())


def test_it_runs_and_prints_what_was_committed_but_for_rounding(executed, committed):
    """Another processor rounds another way, so that a training ends elsewhere: within ten points of 100."""
    new, old = texts(executed), texts(committed)
    assert re.sub(r"\d+", "N", new) == re.sub(r"\d+", "N", old)
    for pattern in ("pooling:", "selective scan:", "is the first one in"):
        assert percent(pattern, new) == pytest.approx(percent(pattern, old), abs=10)


def test_the_scan_keeps_what_pooling_loses(executed):
    printed = texts(executed)
    assert percent("selective scan:", printed) > percent("pooling:", printed) + 5
    assert percent("is the first one in", printed) > 50  # 12.5 by chance
