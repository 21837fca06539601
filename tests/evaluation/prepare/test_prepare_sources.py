"""What the harness does, ``bimba prepare`` knows: which data sets there are, and where their questions are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from homes import ON_HUB
from lmms_eval.api.task import _resolve_hf_datasets_cache_dir
from lmms_eval.caching.fs_detect import FsType

from lmms_eval_plugin.miniature import replicas
from lmms_eval_plugin.prepare.rows import cache_folder
from lmms_eval_plugin.prepare.sources import ALL, SOURCES, hint, table_of


def test_the_sources_are_the_tasks_own(complete):
    tables = [(t.repository, t.config, t.split, t.folder) for t in map(table_of, map(SOURCES.get, ON_HUB))]
    expected = [(r.repository, r.config, r.split, r.videos) for r in replicas()]
    for (repository, config, split, folder), names in zip(
        sorted(tables, key=str), sorted(expected, key=str), strict=True
    ):
        assert (repository, config or names[1], split, folder) == names  # data sets of one configuration do not name it


def test_every_benchmark_of_evaluate_is_known():
    configs = {path.stem for path in (Path(__file__).parents[3] / "conf/benchmark").glob("*.yaml")}
    assert set(SOURCES) == configs - {"all", "suite", "needle", "needle_ablation"}
    assert len(ALL) == 7


def test_hints_name_the_benchmark():
    assert "`bimba prepare videomme` says" in hint(["bimba_videomme"])
    assert "`bimba prepare videomme` says" in hint(["videomme", "bimba_videomme_choose"])
    assert "`bimba prepare videomme --subtitles` says" in hint(["videomme_w_subtitle"])
    assert "`bimba prepare all` says" in hint(["mlvu_dev", "vnbench"])
    assert hint(["bimba_needle"]) == ""


@pytest.mark.parametrize("kind", FsType)
@pytest.mark.parametrize("variable", [None, "HF_DATASETS_CACHE", "LMMS_EVAL_DATASETS_CACHE"])
def test_questions_are_kept_where_the_harness_keeps_them(empty, monkeypatch, tmp_path, kind, variable):
    monkeypatch.delenv("LMMS_EVAL_DATASETS_CACHE", raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "named"))
    for module in ("lmms_eval.api.task", "lmms_eval.caching.fs_detect"):
        monkeypatch.setattr(f"{module}.detect_fs_type", lambda path: kind)
        monkeypatch.setattr(f"{module}.find_local_scratch", lambda: str(tmp_path / "scratch"))
    assert str(cache_folder(empty)) == _resolve_hf_datasets_cache_dir()


def test_a_cache_beside_the_home_is_said(home, prepare, monkeypatch, tmp_path):
    (home / "datasets").rename(tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    code, _, items = prepare("mlvu", "--offline")
    assert code == 0
    ok, state, todo = items["mlvu"]["cache"]
    assert (ok, state) == (True, f"the harness keeps questions in {tmp_path}/cache, not below HF_HOME")
    assert f"LMMS_EVAL_DATASETS_CACHE={home}/datasets" in todo
