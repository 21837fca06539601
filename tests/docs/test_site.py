"""The site builds strictly, is complete in itself, and a page that is left out or a dead link fails the build."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.fences import ROOT

STEPS = (
    "bimba/data/video/__init__.py",
    "bimba/data/transform.py",
    "bimba/model/vision.py",
    "bimba/model/compressor/mamba.py",
    "bimba/model/bimba.py",
    "bimba/inference/engine.py",
)


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    # Not --quiet: what it does not print, mkdocs does not count, and nothing is strict any more.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_it_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    loads = re.compile(r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(?:https?:)?//|<link[^>]*href=["']?(?:https?:)?//""")
    assert not [str(page) for page in pages if loads.search(page.read_text())]
    styles = [path for path in site.rglob("*.css") if re.search(r"url\(['\"]?(?:https?:)?//", path.read_text())]
    assert not styles


def test_what_was_written_is_found(site):
    index = json.loads((site / "search/search_index.json").read_text())["docs"]
    found = {entry["location"].split("#")[0] for entry in index if "selective" in entry["text"]}
    assert {"scan/", "tour/", "api/"} <= found


@pytest.mark.parametrize("step", STEPS)
def test_the_tour_leads_to_the_six_files(site, step):
    page = (site / "tour/index.html").read_text()
    assert f'href="../source/{step}/"' in page
    assert "<h1" in (site / "source" / step / "index.html").read_text()


def test_the_reference_has_docstrings_and_their_shapes(site):
    page = (site / "api/index.html").read_text()
    for name in ("VideoQA.encode", "MambaCompressor", "selective_scan", "load_pretrained"):
        assert re.search(rf'id="bimba\.[\w.]*{re.escape(name)}"', page), name
    assert "(B, T, H, W, C)" in page
    assert ":class:" not in page


def test_a_page_that_is_left_out_and_dead_links_fail(tmp_path):
    for path in ROOT.iterdir():
        if path.name not in ("docs", "mkdocs.yml", "site", ".git"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "docs").mkdir()
    for path in (ROOT / "docs").iterdir():
        (tmp_path / "docs" / path.name).symlink_to(path)
    (tmp_path / "docs/hooks.py").unlink()
    (tmp_path / "docs/hooks.py").write_text((ROOT / "docs/hooks.py").read_text())
    config = (ROOT / "mkdocs.yml").read_text()
    config = re.sub(r"  - mkdocstrings:.*?\n\n", "\n", config, flags=re.S)  # which takes most of the time
    (tmp_path / "mkdocs.yml").write_text(config)
    (tmp_path / "docs/left_out.md").write_text("[a](gone.md) [b](../bimba/gone.py) [c](scan.md#gone)")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    for problem in ("left_out.md", "'gone.md'", "gone.py", "#gone"):
        assert problem in done.stderr, done.stderr
