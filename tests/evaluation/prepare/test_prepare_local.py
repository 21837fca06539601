"""``bimba prepare`` with archives and folders on this machine: unpacked, linked, never mixed up."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pytest
from homes import ON_HUB, POINTER, snapshot, tree

from bimba import cli
from lmms_eval_plugin.miniature import write_film
from lmms_eval_plugin.prepare.sources import SOURCES


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
    assert code == cli.WRONG_USAGE
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
    assert code == cli.FAILED
    assert "A question of mlvu has no column 'video_name', but video, question" in printed
