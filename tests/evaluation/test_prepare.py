"""``bimba prepare`` on miniatures: complete, and with everything that can be wrong; the hub is the stand-in."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from hub_stand_in import COMMIT, TOKEN, Hub
from lmms_eval.api.task import _resolve_hf_datasets_cache_dir
from lmms_eval.caching.fs_detect import FsType
from replicas import write_hub

from bimba import cli
from lmms_eval_plugin.miniature import replicas, write_film, write_home
from lmms_eval_plugin.prepare.rows import cache_folder
from lmms_eval_plugin.prepare.sources import ALL, SOURCES, hint, table_of

ON_HUB = tuple(name for name in SOURCES if table_of(SOURCES[name]) is not None)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    """An HF_HOME with everything. Tests work on copies."""
    home = tmp_path_factory.mktemp("prepare") / "home"
    write_home(home)
    return home


@pytest.fixture(scope="module")
def hub_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("prepare") / "hub"
    write_hub(root)
    return root


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A user without HF_HOME and token, a hub that does not answer, and modules that have not read HF_HOME yet."""
    import huggingface_hub.constants

    for name in ("HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "BIMBA_VNBENCH_ROOT"):
        monkeypatch.setenv(name, "unset by the test")  # so that what the command sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # as tests/conftest.py has it
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "user/token"))
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if _reads_home(name)}
    _resolve_hf_datasets_cache_dir.cache_clear()
    yield
    _resolve_hf_datasets_cache_dir.cache_clear()
    for name in list(sys.modules):
        if _reads_home(name):
            del sys.modules[name]
    sys.modules.update(held)


def _reads_home(module: str) -> bool:
    ours = module.startswith("lmms_eval_plugin.tasks.") and module.endswith(".task")
    return ours or (module.startswith("lmms_eval.tasks.") and module.endswith(".utils"))


@pytest.fixture
def home(complete, tmp_path, monkeypatch) -> Path:
    """A complete HF_HOME to spoil."""
    folder = tmp_path / "home"
    shutil.copytree(complete, folder)
    monkeypatch.setenv("HF_HOME", str(folder))
    return folder


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.setenv("HF_HOME", str(folder))
    return folder


@pytest.fixture
def prepare(capsys, tmp_path):
    """Runs the command: exit code, what it printed, and the JSON as benchmark -> item -> (ok, state, todo)."""

    def run(*arguments: str) -> tuple[int, str, dict]:
        path = tmp_path / "findings.json"
        path.unlink(missing_ok=True)
        code = cli.main(["prepare", *arguments, "--json", str(path)])
        found = json.loads(path.read_text()) if path.exists() else {}
        items = {
            name: {item["what"]: (item["ok"], item["state"], item["todo"]) for item in report["items"]}
            for name, report in found.items()
        }
        captured = capsys.readouterr()
        return code, captured.out + captured.err, items

    return run


def tree(folder: Path) -> dict[str, tuple]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in [folder, *folder.rglob("*")]
    }


def snapshot(home: Path, hub_root: Path, name: str) -> Path:
    """What a download of the benchmark's repository leaves."""
    table = table_of(SOURCES[name])
    folder = home / "hub" / f"datasets--{table.repository.replace('/', '--')}"
    shutil.copytree(hub_root / table.repository, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT


# What the harness does


def test_the_sources_are_the_tasks_own(complete):
    tables = [(t.repository, t.config, t.split, t.folder) for t in map(table_of, map(SOURCES.get, ON_HUB))]
    expected = [(r.repository, r.config, r.split, r.videos) for r in replicas()]
    for (repository, config, split, folder), names in zip(
        sorted(tables, key=str), sorted(expected, key=str), strict=True
    ):
        assert (repository, config or names[1], split, folder) == names  # data sets of one configuration do not name it


def test_every_benchmark_of_evaluate_is_known():
    configs = {path.stem for path in (Path(__file__).parents[2] / "conf/benchmark").glob("*.yaml")}
    assert set(SOURCES) == configs - {"all", "suite", "needle"}
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


# Complete, and what is missing


def test_everything_there_is_ready_without_a_trace(home, prepare):
    before = tree(home)
    code, printed, items = prepare("all", "--dry-run")
    assert code == 0
    assert list(items) == list(ALL)
    assert printed.count(": ready") == 7
    assert items["mlvu"]["questions"] == (True, "7", "")
    assert tree(home) == before


@pytest.mark.parametrize("name", SOURCES)
def test_a_missing_video_is_named(home, prepare, name):
    (video, *_) = sorted((home / (table_of(SOURCES[name]).folder if name in ON_HUB else "vnbench")).rglob("*.mp4"))
    video.unlink()
    code, printed, items = prepare(name, "--offline")
    assert code == 1
    ok, state, todo = items[name]["videos"]
    assert not ok
    assert state.startswith("1 of 2 in ")
    assert f"1 missing: {video.relative_to(home)}".split("/")[-1] in state
    assert ("without --offline to download" if name in ON_HUB else "VideoNIAH project serves them") in todo
    assert f"{name}: not ready" in printed


@pytest.mark.parametrize(("content", "why"), [("", "empty"), (POINTER, "a Git LFS pointer")])
def test_a_file_that_is_no_video_yet_is_named(home, prepare, content, why):
    (home / "videomme/data/film1.mp4").write_text(content)
    code, _, items = prepare("videomme", "--offline")
    assert (code, items["videomme"]["videos"][0]) == (1, False)
    assert f"1 broken: data/film1.mp4 ({why})" in items["videomme"]["videos"][1]


def test_a_video_that_may_not_be_read_is_named(home, prepare, monkeypatch):
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "film1.mp4" and access(path, mode))
    code, _, items = prepare("videomme", "--offline")
    assert code == 1
    assert "1 broken: data/film1.mp4 (not readable: see its permissions)" in items["videomme"]["videos"][1]


def test_probing_opens_every_video(home, prepare):
    (home / "mlvu/0_film.mp4").write_bytes(b"not a film" * 200)
    assert prepare("mlvu", "--offline")[0] == 0
    code, _, items = prepare("mlvu", "--offline", "--probe")
    assert code == 1
    ok, state, _ = items["mlvu"]["probe"]
    assert not ok
    assert state.startswith("1 of 2 can be opened\n")
    assert "mlvu/0_film.mp4: not a media file" in state


@pytest.mark.parametrize("name", ON_HUB)
def test_missing_questions_are_named(home, prepare, name):
    for folder in (home / "datasets").glob("*___*"):
        shutil.rmtree(folder)
    code, _, items = prepare(name, "--offline")
    assert (code, items[name]["questions"][0]) == (1, False)
    assert items[name]["questions"][1].startswith(f"not in {home}/datasets/")
    assert table_of(SOURCES[name]).repository in items[name]["questions"][2]
    assert "videos" not in items[name]


def test_questions_that_cannot_be_read_are_named(home, prepare):
    (info,) = (home / "datasets/sy1998___mlvu_dev").rglob("dataset_info.json")
    info.write_text("{")
    code, _, items = prepare("mlvu", "--offline")
    assert code == 1
    assert "sy1998___mlvu_dev: Expecting property name" in items["mlvu"]["questions"][1]


# HF_HOME


def test_a_wrong_home_is_noticed_and_nothing_is_downloaded_to_it(home, empty, prepare, monkeypatch, hub_root, tmp_path):
    (tmp_path / "user/.cache").mkdir(parents=True)
    home.rename(tmp_path / "user/.cache/huggingface")
    with Hub(hub_root) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        code, _, items = prepare("all")
        assert code == 1
    for found in items.values():
        ok, state, todo = found["HF_HOME"]
        assert not ok
        assert "has nothing of" in state
        assert todo.startswith(f"export HF_HOME={tmp_path}/user/.cache/huggingface")
    assert list(empty.iterdir()) == []


def test_the_home_that_was_set_is_looked_at_when_another_is_named(home, prepare, tmp_path):
    code, _, items = prepare("nextqa", "--hf-home", str(tmp_path / "new"), "--offline")
    assert code == 1
    ok, state, todo = items["nextqa"]["HF_HOME"]
    assert (ok, state) == (True, f"{tmp_path}/new has nothing of nextqa, {home} has")  # it was named: so be it
    assert todo.endswith(f"--from {home}/nextqa")
    assert not (tmp_path / "new").exists()


def test_a_home_that_is_named_is_to_be_exported(home, prepare, monkeypatch):
    monkeypatch.delenv("HF_HOME")
    code, _, items = prepare("nextqa", "--hf-home", str(home), "--offline")
    assert code == 0
    assert items["nextqa"]["HF_HOME"] == (True, str(home), f"export HF_HOME={home}")


@pytest.mark.parametrize(
    ("value", "message"), [("cache", "'cache', which is not absolute"), ("FILE", "which is a file")]
)
def test_a_home_that_cannot_be_one_is_an_error(prepare, monkeypatch, tmp_path, value, message):
    (tmp_path / "FILE").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "FILE") if value == "FILE" else value)
    code, printed, _ = prepare("mlvu")
    assert code == cli.USER_ERROR
    assert message in printed


# Archives and folders on this machine


@pytest.mark.parametrize("name", ON_HUB)
def test_a_download_is_unpacked_and_read_without_the_hub(empty, prepare, hub_root, name):
    snapshot(empty, hub_root, name)
    before = tree(empty)
    code, _, items = prepare(name, "--dry-run")
    assert code == 1
    assert "without --dry-run they are brought over" in items[name]["questions"][2]
    assert "without --dry-run it would extract 2 files, " in items[name]["videos"][2]
    assert tree(empty) == before

    code, _, items = prepare(name, "--offline")
    assert code == 0, items
    assert items[name]["videos"][1].startswith("2 of 2 in ")
    assert "extract 2 files" in items[name]["disk"][1]
    assert prepare(name, "--offline")[2][name]["disk"][1].endswith("nothing was changed")


def test_what_was_unpacked_is_what_the_harness_reads(empty, prepare, hub_root, monkeypatch):
    for name in ON_HUB:
        if name != "egoschema_subset":
            snapshot(empty, hub_root, name)
    for name in ON_HUB:
        assert prepare(name, "--offline")[0] == 0
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    from lmms_eval.tasks import TaskManager, get_task_dict

    from lmms_eval_plugin.manifest import TASKS_FOLDER

    shutil.rmtree(empty / "hub")
    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False, model_name="bimba")
    tasks = get_task_dict([SOURCES[name].task for name in ON_HUB], manager, "chat")
    for task in tasks.values():
        task.build_all_requests()
        for instance in task.instances:
            (message,) = instance.args[1](task.dataset[instance.args[5]][instance.args[3]])
            assert Path(message["content"][0]["url"]).is_file()


def test_an_archive_in_the_folder_itself_is_unpacked(home, prepare, hub_root):
    (home / "mlvu/1_film.mp4").unlink()
    shutil.copy(hub_root / "sy1998/MLVU_dev/videos_chunked_01.zip", home / "mlvu")
    code, _, items = prepare("mlvu")
    assert code == 0
    assert "done: extract 1 files" in items["mlvu"]["disk"][1]


def test_videos_elsewhere_are_linked(home, prepare, tmp_path):
    (home / "nextqa").rename(tmp_path / "mine")
    code, _, items = prepare("nextqa", "--from", str(tmp_path / "mine"))
    assert code == 0
    assert items["nextqa"]["disk"][1].endswith("done: link 2 files")
    links = sorted((home / "nextqa/NExTVideo").iterdir())
    assert [link.readlink() for link in links] == sorted((tmp_path / "mine/NExTVideo").iterdir())


def test_a_copied_repository_is_enough(empty, prepare, hub_root, tmp_path):
    shutil.copytree(hub_root / "longvideobench/LongVideoBench", tmp_path / "copy")
    code, _, items = prepare("longvideobench", "--from", str(tmp_path / "copy"), "--offline")
    assert code == 0
    assert items["longvideobench"]["questions"][1] == f"3, brought over from {tmp_path}/copy"
    assert sorted(p.name for p in (empty / "datasets/longvideobench/videos").iterdir()) == ["film0.mp4", "film1.mp4"]


def test_a_broken_file_is_replaced(home, prepare, tmp_path):
    (home / "videomme/data/film1.mp4").write_text(POINTER)
    write_film(tmp_path / "mine/film1.mp4", 1)
    write_film(tmp_path / "mine/film0.mp4", 0)
    assert prepare("videomme", "--from", str(tmp_path / "mine"))[0] == 0
    assert (home / "videomme/data/film1.mp4").readlink() == tmp_path / "mine/film1.mp4"
    assert not (home / "videomme/data/film0.mp4").is_symlink()


def test_another_ending_that_the_task_knows_will_do(home, prepare, tmp_path):
    (tmp_path / "mine").mkdir()
    (home / "videomme/data/film1.mp4").rename(tmp_path / "mine/film1.mkv")
    assert prepare("videomme", "--from", str(tmp_path / "mine"))[0] == 0
    assert (home / "videomme/data/film1.mkv").is_symlink()


def test_of_files_of_one_name_the_one_in_the_right_folder_is_taken(home, prepare, tmp_path):
    (home / "egoschema/videos/uid-0.mp4").unlink()
    write_film(tmp_path / "mine/thumbnails/uid-0.mp4", 1, num_frames=2)
    write_film(tmp_path / "mine/videos/uid-0.mp4", 0)
    assert prepare("egoschema", "--from", str(tmp_path / "mine"))[0] == 0
    assert (home / "egoschema/videos/uid-0.mp4").readlink() == tmp_path / "mine/videos/uid-0.mp4"


def test_which_of_two_files_is_meant_is_not_guessed(home, prepare, tmp_path):
    (home / "egoschema/videos/uid-0.mp4").unlink()
    write_film(tmp_path / "mine/a/uid-0.mp4", 1, num_frames=2)
    write_film(tmp_path / "mine/b/uid-0.mp4", 0)
    code, _, items = prepare("egoschema", "--from", str(tmp_path / "mine"), "--offline")
    assert code == 1
    assert "videos/uid-0.mp4: 2 different files are called so" in items["egoschema"]["problems"][1]


def test_a_damaged_archive_is_named(empty, prepare, hub_root):
    archive = snapshot(empty, hub_root, "mlvu") / "videos_chunked_01.zip"
    archive.write_bytes(archive.read_bytes()[:-40])
    code, _, items = prepare("mlvu", "--offline")
    assert code == 1
    assert f"{archive}: BadZipFile" in items["mlvu"]["problems"][1]
    archive.write_text(POINTER)
    assert f"{archive} is a Git LFS pointer" in prepare("mlvu", "--offline")[2]["mlvu"]["problems"][1]


def test_a_name_cannot_lead_out_of_the_folder(home, prepare, monkeypatch, tmp_path):
    from lmms_eval_plugin.prepare import questions

    read = questions.read_rows
    monkeypatch.setattr(
        questions, "read_rows", lambda *args: [{**row, "video_name": "../../out.mp4"} for row in read(*args)]
    )
    write_film(tmp_path / "mine/out.mp4", 0)
    code, _, items = prepare("mlvu", "--from", str(tmp_path / "mine"))
    assert code == 1
    assert f"../../out.mp4 leads out of {home}/mlvu" in items["mlvu"]["problems"][1]
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["mlvu", "--from", "nowhere"], "nowhere is not a folder"), (["all", "--from", "."], "give its name rather than")],
)
def test_what_cannot_be_searched_is_an_error(prepare, home, arguments, message):
    code, printed, _ = prepare(*arguments)
    assert code == cli.USER_ERROR
    assert message in printed


def test_two_do_not_write_to_one_folder(home, prepare, tmp_path):
    (home / "mlvu").rename(tmp_path / "mine")
    with (home / ".mlvu.bimba-prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # not a FileLock: after an evaluation the harness lets its own process pass
        code, _, items = prepare("mlvu", "--from", str(tmp_path / "mine"))
    assert code == 1
    assert "another `bimba prepare` is putting files" in items["mlvu"]["problems"][1]
    assert prepare("mlvu", "--from", str(tmp_path / "mine"))[0] == 0


def test_what_a_killed_run_left_is_no_obstacle(home, prepare, tmp_path):
    (home / "mlvu/0_film.mp4").rename(home / "mlvu/.0_film.mp4.partial")
    write_film(tmp_path / "mine/0_film.mp4", 0)
    assert prepare("mlvu", "--from", str(tmp_path / "mine"))[0] == 0
    assert sorted(path.name for path in (home / "mlvu").iterdir()) == ["0_film.mp4", "1_film.mp4"]


def test_another_data_set_is_not_taken_for_it(home, prepare, monkeypatch):
    from lmms_eval_plugin.prepare import questions

    monkeypatch.setattr(questions, "read_rows", lambda *args: [{"video": 1, "question": "?"}])
    code, printed, _ = prepare("mlvu", "--offline")
    assert code == cli.USER_ERROR
    assert "A question of mlvu has no column 'video_name', but video, question" in printed


# Disk


def test_without_space_nothing_is_unpacked(empty, prepare, hub_root, monkeypatch):
    snapshot(empty, hub_root, "mlvu")
    usage = shutil.disk_usage(empty)._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    code, _, items = prepare("mlvu", "--offline")
    assert code == 1
    assert "has 10 bytes free; extracting needs " in items["mlvu"]["problems"][1]
    assert items["mlvu"]["disk"][1].startswith("10 bytes free")
    assert not (empty / "mlvu").exists()


def test_without_space_nothing_is_downloaded(empty, prepare, hub_root, monkeypatch):
    usage = shutil.disk_usage(empty)._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with Hub(hub_root) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        code, _, items = prepare("mlvu")
    assert code == 1
    assert "downloading sy1998/MLVU_dev (" in items["mlvu"]["problems"][1]
    assert not [path for path in empty.rglob("*") if path.suffix in (".zip", ".parquet", ".mp4")]


def test_a_disk_that_fills_up_leaves_whole_files_and_it_goes_on(empty, prepare, hub_root, monkeypatch):
    snapshot(empty, hub_root, "mlvu")
    copy, count = shutil.copyfileobj, 0

    def full_at_the_second(source, target, *length):
        nonlocal count
        count += 1
        if count == 2:
            target.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target, *length)

    with monkeypatch.context() as patch:
        patch.setattr("lmms_eval_plugin.prepare.archives.shutil.copyfileobj", full_at_the_second)
        code, _, items = prepare("mlvu", "--offline")
    assert code == 1
    assert "No space left on device. What was written stays" in items["mlvu"]["problems"][1]
    assert [path.name for path in (empty / "mlvu").iterdir()] == ["0_film.mp4"]
    written = (empty / "mlvu/0_film.mp4").stat().st_mtime_ns
    code, _, items = prepare("mlvu", "--offline")
    assert code == 0
    assert "extract 1 files" in items["mlvu"]["disk"][1]
    assert (empty / "mlvu/0_film.mp4").stat().st_mtime_ns == written


# The hub


def test_what_is_nowhere_is_downloaded(empty, prepare, hub_root, monkeypatch):
    with Hub(hub_root, gated=("longvideobench/LongVideoBench",)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name in ON_HUB:
            code, printed, items = prepare(name)
            assert code == 0, items
            assert TOKEN not in printed
        assert hub.outside == []
    assert all(prepare(name)[0] == 0 for name in ON_HUB)  # now that it does not answer any more


def test_only_questions_are_downloaded_where_they_alone_are_missing(home, prepare, hub_root, monkeypatch):
    shutil.rmtree(home / "datasets/lmms-eval___video-mme")
    with Hub(hub_root) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert prepare("videomme")[0] == 0
    assert not list((home / "hub").rglob("*.zip"))


@pytest.mark.parametrize(
    ("token", "who"), [(None, "there is no token"), ("hf_of_someone", "this token's account has no access (yet)")]
)
def test_a_gated_data_set_says_where_to_ask(empty, prepare, hub_root, monkeypatch, token, who):
    with Hub(hub_root, gated=("longvideobench/LongVideoBench",)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        code, printed, items = prepare("longvideobench")
        page = f"{hub.url}/datasets/longvideobench/LongVideoBench"
    assert code == 1
    (problem,) = items["longvideobench"]["problems"][1].splitlines()
    todo = f"ask for access on {page}, then `hf auth login` or set HF_TOKEN"
    assert problem == f"longvideobench/LongVideoBench is gated and {who}: {todo}"
    assert items["longvideobench"]["token"][0] is (token is not None)
    assert "hf_of_someone" not in printed


def test_a_hub_that_does_not_answer_is_said(empty, prepare):
    code, _, items = prepare("mlvu")
    assert code == 1
    assert "sy1998/MLVU_dev cannot be downloaded (ConnectError: " in items["mlvu"]["problems"][1]


def test_a_token_of_another_home_is_seen(empty, prepare, tmp_path):
    (tmp_path / "user/.cache/huggingface").mkdir(parents=True)
    (tmp_path / "user/.cache/huggingface/token").write_text("hf_secret")
    code, printed, items = prepare("longvideobench", "--dry-run")
    assert code == 1
    ok, state, todo = items["longvideobench"]["token"]
    assert (ok, state) == (False, "none; longvideobench/LongVideoBench is gated")
    assert f"the one in {tmp_path}/user/.cache/huggingface/token is not read with this HF_HOME" in todo
    assert "hf_secret" not in printed


# Subtitles and VNBench


def test_subtitles_are_asked_for_by_those_who_need_them(home, prepare, hub_root):
    assert prepare("videomme", "--offline")[2]["videomme"]["subtitles"][:2] == (True, "0 of 2")
    code, _, items = prepare("videomme", "--offline", "--subtitles")
    assert code == 1
    assert items["videomme"]["subtitles"][0] is False
    snapshot(home, hub_root, "videomme")
    assert "it would extract 1 files" in prepare("videomme", "--dry-run", "--subtitles")[2]["videomme"]["subtitles"][2]
    code, _, items = prepare("videomme", "--offline", "--subtitles")
    assert code == 0
    assert items["videomme"]["subtitles"] == (True, "1 of 2", "")  # not every video has some
    assert (home / "videomme/subtitle/film0.srt").read_text().startswith("1\n")


def test_every_video_of_longvideobench_has_subtitles(home, prepare, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/film0_en.json").write_text("[{}]")
    command = ("longvideobench", "--offline", "--subtitles", "--from", str(tmp_path / "mine"))
    code, _, items = prepare(*command)
    assert code == 1
    assert items["longvideobench"]["subtitles"][1] == "1 of 2\nmissing: subtitles/film1_en.json"
    (tmp_path / "mine/film1_en.json").write_text("[{}]")
    assert prepare(*command)[0] == 0


def test_vnbench_as_people_have_it_is_linked(home, empty, prepare, tmp_path):
    (home / "vnbench").rename(tmp_path / "VNBench")
    before = tree(tmp_path / "VNBench")
    code, _, items = prepare("vnbench", "--from", str(tmp_path / "VNBench"), "--dry-run")
    assert code == 1
    assert items["vnbench"]["questions"][1] == f"8 in {tmp_path}/VNBench alone"
    assert "it would link 2 files" in items["vnbench"]["videos"][2]
    assert not (empty / "vnbench").exists()
    code, _, items = prepare("vnbench", "--from", str(tmp_path / "VNBench"))
    assert code == 0, items
    assert (empty / "vnbench/VNBench-main-4try.json").is_symlink()
    assert len(list((empty / "vnbench/VNBench_new").iterdir())) == 2
    assert tree(tmp_path / "VNBench") == before
    assert prepare("vnbench")[0] == 0


def test_vnbench_may_be_anywhere(home, empty, prepare, monkeypatch, tmp_path):
    (tmp_path / "user/.cache").mkdir(parents=True)
    home.rename(tmp_path / "user/.cache/huggingface")
    shutil.copytree(tmp_path / "user/.cache/huggingface/vnbench", tmp_path / "mine")
    monkeypatch.setenv("BIMBA_VNBENCH_ROOT", str(tmp_path / "mine"))
    code, _, items = prepare("vnbench")
    assert code == 0
    assert items["vnbench"]["HF_HOME"] == (True, str(empty), "")


def test_vnbench_says_where_to_get_what(empty, prepare, monkeypatch, tmp_path):
    monkeypatch.setenv("BIMBA_VNBENCH_ROOT", str(tmp_path / "elsewhere"))
    code, _, items = prepare("vnbench")
    assert code == 1
    assert f"--local-dir {tmp_path}/elsewhere" in items["vnbench"]["questions"][2]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/VNBench-main-4try.json").write_text('[{"video": "a.mp4"}]')
    assert "row 0: not a question of VNBench" in prepare("vnbench")[2]["vnbench"]["questions"][1]
