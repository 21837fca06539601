"""What an evaluation says whose data is not there: one line, not a traceback, and before the checkpoint is read."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

import pytest
from hub_stand_in import TOKEN
from lmms_eval.api.task import ConfigurableTask, _resolve_hf_datasets_cache_dir
from loguru import logger
from tenacity import wait_none

from bimba.types import BimbaError
from lmms_eval_plugin.miniature import write_home
from lmms_eval_plugin.prepare.preflight import check_data

REPOSITORY = Path(__file__).resolve().parents[2]
STOCK_MODULES = ("lmms_eval_plugin.tasks.bimba_", "lmms_eval.tasks.longvideobench", "lmms_eval.tasks.mlvu")


@pytest.fixture(autouse=True)
def user(monkeypatch, tmp_path):
    """Neither HF_HOME nor a token, and modules that have not read HF_HOME yet."""
    import huggingface_hub.constants

    for name in ("HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "BIMBA_VNBENCH_ROOT"):
        monkeypatch.setenv(name, "unset by the test")  # so that what evaluate.py sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "user/token"))
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(STOCK_MODULES)}
    _resolve_hf_datasets_cache_dir.cache_clear()
    yield
    _resolve_hf_datasets_cache_dir.cache_clear()
    for name in list(sys.modules):
        if name.startswith(STOCK_MODULES):
            del sys.modules[name]
    sys.modules.update(held)


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    write_home(tmp_path / "home")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def empty(monkeypatch, tmp_path) -> Path:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    return tmp_path / "empty"


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """Runs ``python evaluate.py ...`` in this process; returns what it said when it stopped."""
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), *sys.path])
    monkeypatch.delenv("BIMBA_ROOT", raising=False)

    def run_script(*overrides: str) -> str:
        arguments = ["evaluate.py", f"output_dir={tmp_path}/out", "device=cpu", "num_frames=4", *overrides]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(REPOSITORY / "evaluate.py"), run_name="__main__")
        return str(stopped.value.code)

    return run_script


def test_everything_there_needs_no_token_offline(home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check_data(["bimba_videomme", "mlvu_dev", "vnbench", "bimba_needle"])


def test_other_tasks_need_no_home():
    check_data(["bimba_needle", "vnbench"])


def test_a_home_that_is_not_absolute_is_one_line(evaluate, home, monkeypatch):
    monkeypatch.chdir(home.parent)
    monkeypatch.setenv("HF_HOME", "home")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = evaluate("benchmark=mlvu")
    assert said.startswith("error: HF_HOME is 'home', which is not absolute; ")


def test_a_home_set_to_nothing_is_not_set(evaluate, home, monkeypatch, tmp_path):
    monkeypatch.chdir(home)  # which is not where to look
    monkeypatch.setenv("HF_HOME", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = evaluate("benchmark=mlvu")
    assert said.startswith(f"error: No data of mlvu in HF_HOME, {tmp_path}/user/.cache/huggingface (expected ")


def test_what_a_task_s_module_says_is_one_line(evaluate, home, monkeypatch):
    """The harness makes an ImportError of it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)

    def refuse(benchmark):
        raise BimbaError(f"Nothing goes with {benchmark}.")

    monkeypatch.setattr("lmms_eval_plugin.tasks.published.stock_utils", refuse)
    assert evaluate("benchmark=mlvu") == "error: Nothing goes with mlvu."


def test_films_that_are_there_stay(home):
    film = home / "mlvu/0_film.mp4"
    before = film.stat()
    write_home(home)
    after = film.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not list(home.rglob("*.partial"))


def test_everything_there_needs_one_or_the_other(home, monkeypatch):
    with pytest.raises(BimbaError, match="data of videomme, mlvu is here, but .* no token. Set HF_HUB_OFFLINE=1"):
        check_data(["bimba_videomme", "bimba_mlvu_dev"])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    check_data(["bimba_videomme", "bimba_mlvu_dev"])


@pytest.mark.parametrize("folder", ["mlvu", "datasets/sy1998___mlvu_dev"])
def test_what_is_missing_is_named(home, monkeypatch, folder):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.rmtree(home / folder)
    with pytest.raises(BimbaError) as raised:
        check_data(["bimba_mlvu_dev", "bimba_videomme"])
    assert str(raised.value) == (
        f"No data of mlvu in HF_HOME, {home} (expected {home}/{folder}), and HF_HUB_OFFLINE is set. "
        "`bimba prepare mlvu` says what is missing and what to do."
    )


def test_a_download_is_announced(empty, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    messages: list[str] = []
    sink = logger.add(messages.append, level="WARNING", format="{message}")
    try:
        check_data(["bimba_egoschema"])
    finally:
        logger.remove(sink)
    (message,) = messages
    assert f"No data of egoschema in HF_HOME, {empty}" in message
    assert "the harness is going to download it. `bimba prepare egoschema`" in message


def test_a_wrong_home_and_no_token_are_one_line(evaluate, home, monkeypatch, tmp_path):
    (tmp_path / "user/.cache").mkdir(parents=True)
    home.rename(tmp_path / "user/.cache/huggingface")
    said = evaluate("benchmark=videomme", "checkpoint=nowhere")
    assert said.startswith(f"error: No data of videomme in HF_HOME, {home} (expected {home}/videomme, ")
    assert f"{tmp_path}/user/.cache/huggingface has data of videomme: is that the one you mean?" in said
    assert "there is no token to download it with." in said
    assert said.endswith("`bimba prepare videomme` says what is missing and what to do.")


def test_a_gated_data_set_is_said_to_be(evaluate, empty):
    said = evaluate("benchmark=longvideobench", "checkpoint=nowhere")
    page = "http://127.0.0.1:9/datasets/longvideobench/LongVideoBench"
    assert f"longvideobench/LongVideoBench is gated: ask for access on {page}, then `hf auth login`" in said


def test_data_that_cannot_be_fetched_is_one_line(evaluate, empty, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(ConfigurableTask.download.retry, "wait", wait_none())
    said = evaluate("benchmark=mlvu")
    assert said.startswith("error: The harness has no data (LocalEntryNotFoundError: ")
    assert said.endswith("`bimba prepare mlvu` says what is missing and what to do.")


def test_missing_videos_are_one_line(evaluate, home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (home / "mlvu/0_film.mp4").unlink()
    said = evaluate("benchmark=mlvu")
    assert said.startswith(f"error: 1 videos are missing: video path:{home}/mlvu/0_film.mp4")
    assert said.endswith("Nothing was evaluated. `bimba prepare mlvu` says what is missing and what to do.")


def test_missing_subtitles_are_one_line(evaluate, home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    task = "longvideobench_val_i"
    said = evaluate("benchmark=longvideobench", f"benchmark.tasks=[{task}]", "benchmark.published={}")
    assert said.startswith("error: The harness misses a file: ")
    assert f"{home}/datasets/longvideobench/subtitles/film0_en.json" in said
    assert said.endswith("`bimba prepare longvideobench --subtitles` says what is missing and what to do.")
