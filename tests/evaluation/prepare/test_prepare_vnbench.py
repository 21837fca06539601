"""``bimba prepare`` for subtitles, and for VNBench, which is not on the hub."""

from __future__ import annotations

import shutil

from homes import snapshot, tree


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
