"""The index of the annotations: built once per content, whole or not at all, and nothing that a worker copies."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from bimba.data import index as index_module
from bimba.data import index_rows
from bimba.data.index import LISTED, check, open_index
from bimba.data.index_rows import MODALITIES
from bimba.data.mixture import Mixture, Source, Take, read_mixture
from bimba.types import BimbaError
from tests.data import layout
from tests.data.layout import talk


@pytest.fixture
def built(monkeypatch) -> list[Path]:
    """Where indices were built, as the test goes on."""
    folders: list[Path] = []
    build = index_module._build

    def noting(mixture, literal_tags, contents, destination):
        folders.append(destination)
        build(mixture, literal_tags, contents, destination)

    monkeypatch.setattr(index_module, "_build", noting)
    return folders


def mixture_of(tmp_path: Path, rows: list, name: str = "rows.json", take: str = "all") -> Mixture:
    path = tmp_path / name
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) if name.endswith("l") else json.dumps(rows))
    return Mixture(name, (Source(path, Take.parse(take)),))


def text(number: int) -> dict:
    return {"id": number, "conversations": talk(f"Say {number}.", f"é{number}")}


def test_rows_of_all_kinds(tmp_path):
    mixture = read_mixture(layout.make(tmp_path))
    index = open_index(mixture, folder=tmp_path / "index")
    assert len(index) == sum(layout.NUM_ROWS.values())
    assert not index.num_problems
    assert not index.num_duplicates
    sources = [index.source(i) for i in range(len(index))]
    assert {name: sources.count(name) for name in sources} == layout.NUM_ROWS
    kinds = [index.modality(i) for i in range(len(index))]
    assert kinds == ["video"] * 6 + ["image", "multi_image", "image", "image"] + ["text"] * 2
    assert index.column("modality").tolist() == [MODALITIES.index(kind) for kind in kinds]
    assert index.column("media").tolist() == [1] * 6 + [1, 2, 1, 1, 0, 0]
    assert [index.row(i)["id"] for i in (10, 11)] == [3, 4]  # the last two of texts.json
    assert [index.value("number", i) for i in (0, 6, 11)] == [0, 1, 4]  # lines count from 1
    assert index.column("words")[10:].tolist() == [3, 3]
    assert index.column("turns")[:1].tolist() == [4]


def test_a_worker_maps_the_same_file(tmp_path):
    index = open_index(mixture_of(tmp_path, [text(i) for i in range(300)]), folder=tmp_path / "index")
    sent = pickle.dumps(index)
    assert len(sent) < 500  # a path, no rows
    again = pickle.loads(sent)
    assert [again.row(i) for i in (0, 299)] == [text(0), text(299)]
    assert again.column("bytes")[3] == len("Say 3.") + 3  # é is two


def test_it_is_built_once_per_content(tmp_path, built):
    folder = tmp_path / "index"
    first = mixture_of(tmp_path, [text(1)])
    open_index(first, folder=folder)
    open_index(first, folder=folder)
    path = first.sources[0].path
    os.utime(path, (1, 1))  # touched
    open_index(first, folder=folder)
    (tmp_path / "copy").mkdir()
    open_index(mixture_of(tmp_path / "copy", [text(1)]), folder=folder)  # copied
    assert len(built) == 1
    assert len(open_index(mixture_of(tmp_path, [text(2), text(3)]), folder=folder)) == 2
    assert len(open_index(mixture_of(tmp_path, [text(2), text(3)], take="first:1"), folder=folder)) == 1
    open_index(mixture_of(tmp_path, [text(2), text(3)]), literal_tags=True, folder=folder)
    assert len(built) == 4
    assert len(set(built)) == 4


def test_several_processes_build_it_once(tmp_path):
    mixture_of(tmp_path, [text(i) for i in range(2000)])
    code = """
import sys
from pathlib import Path
from bimba.data import index
from bimba.data.mixture import Mixture
build = index._build
index._build = lambda *a: (print("built"), build(*a))
root = Path(sys.argv[1])
print(len(index.open_index(Mixture.of_file(root / "rows.json", root), folder=root / "index")))
"""
    run = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = "".join(process.communicate()[0] for process in processes)
    assert said.count("built") == 1
    assert said.count("2000") == 3


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    mixture = mixture_of(tmp_path, [text(1), text(2)])

    def interrupted(row, literal_tags=False):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(index_rows, "problem_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_index(mixture, folder=tmp_path / "index")
    assert [path.name for path in (tmp_path / "index").iterdir() if path.suffix != ".lock"] == []
    assert len(open_index(mixture, folder=tmp_path / "index")) == 2


def test_no_room_for_the_index(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BimbaError, match=r"file/index: the index .* cannot be written.*BIMBA_INDEX_DIR"):
        open_index(mixture_of(tmp_path, [text(1)]), folder=tmp_path / "file" / "index")


@pytest.mark.parametrize(("name", "kept"), [("rows.arrow", 100), ("rows.arrow", 0), ("about.json", 5)])
def test_half_an_index_is_built_again(tmp_path, built, name, kept):
    mixture = mixture_of(tmp_path, [text(1), text(2)])
    folder = open_index(mixture, folder=tmp_path / "index").folder
    (folder / name).write_bytes((folder / name).read_bytes()[:kept])
    assert [open_index(mixture, folder=tmp_path / "index").row(1) for _ in range(2)] == [text(2)] * 2
    assert built == [folder] * 2


def test_an_empty_stamp(tmp_path, built):
    mixture = mixture_of(tmp_path, [text(1)])
    open_index(mixture, folder=tmp_path / "index")
    (stamp,) = (tmp_path / "index").glob("*.stamp")
    stamp.write_text("")
    assert len(open_index(mixture, folder=tmp_path / "index")) == 1
    assert stamp.read_text()
    assert len(built) == 1


def test_names_of_one_file_are_sources_of_their_own(tmp_path):
    first = mixture_of(tmp_path, [text(1)], "a.json")
    (tmp_path / "b.json").symlink_to("a.json")
    second = Mixture("b", (Source(tmp_path / "b.json"),))
    for _ in range(2):
        assert open_index(first, folder=tmp_path / "index").source(0) == "a"
        assert open_index(second, folder=tmp_path / "index").source(0) == "b"


@pytest.mark.parametrize("call", ["open", "stat"])
def test_annotations_that_cannot_be_read(tmp_path, monkeypatch, call):
    mixture = mixture_of(tmp_path, [text(1)])
    path, real = mixture.sources[0].path, getattr(Path, call)

    def refused(self, *arguments, **options):
        if self == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, call, refused)
    with pytest.raises(BimbaError, match=r"rows\.json: cannot be read \(Permission denied\)"):
        open_index(mixture, folder=tmp_path / "index")


def test_annotations_that_change_while_they_are_read(tmp_path, monkeypatch):
    mixture = mixture_of(tmp_path, [text(1)])

    def rewritten(row, literal_tags=False):
        mixture_of(tmp_path, [text(2)])

    with monkeypatch.context() as patched:
        patched.setattr(index_rows, "problem_of", rewritten)
        with pytest.raises(BimbaError, match=r"rows\.json: changed while it was read"):
            open_index(mixture, folder=tmp_path / "index")
    assert open_index(mixture, folder=tmp_path / "index").row(0) == text(2)
    assert open_index(mixture_of(tmp_path, [text(1)]), folder=tmp_path / "index").row(0) == text(1)


def test_shares_that_differ_little(tmp_path):
    takes = [Take.parse(f"first:{percent}%") for percent in ("33.33333", "33.333331")]
    assert len(set(map(str, takes))) == 2
    assert [Take.parse(str(take)) for take in takes] == takes


def test_the_user_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv("BIMBA_INDEX_DIR", str(tmp_path / "mine"))
    assert open_index(mixture_of(tmp_path, [text(1)])).folder.parent == tmp_path / "mine"
    monkeypatch.delenv("BIMBA_INDEX_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert index_module.index_folder() == tmp_path / "cache" / "bimba" / "index"


def test_all_problems_are_listed_up_to_a_number(tmp_path):
    rows = [{"id": i, "conversations": talk("<image>\nWhat?", "So.")} for i in range(LISTED + 5)]
    mixture = mixture_of(tmp_path, [text(99), *rows], "rows.jsonl")
    index = open_index(mixture, folder=tmp_path / "index")
    assert (len(index), index.num_problems) == (1, LISTED + 5)
    with pytest.raises(BimbaError) as caught:
        check(index, mixture)
    lines = str(caught.value).splitlines()
    assert "Rows or files that cannot be used: 25." in lines[0]
    assert "data.bad_rows=skip" in lines[0]
    assert lines[1].startswith(f"  {tmp_path / 'rows.jsonl'}, line 2: 1 <image> tags in the human turns, and neither")
    assert lines[-1] == "  and 5 more"
    check(index, mixture, skip_bad_rows=True)


def test_duplicate_ids(tmp_path):
    mixture = mixture_of(tmp_path, [text(1), text(2), text(1), {**text(3), "id": "1"}])
    index = open_index(mixture, folder=tmp_path / "index")
    assert (len(index), index.num_problems, index.num_duplicates) == (4, 0, 2)
    with pytest.raises(BimbaError, match=r"rows\.json, row 2: the id 1 is that of row 0 too.*\n.*row 3: the id '1'"):
        check(index, mixture)
    check(index, mixture, allow_duplicate_ids=True)


def test_several_files_may_ask_about_the_same_thing(tmp_path):
    files = [mixture_of(tmp_path, [text(1)], name).sources[0] for name in ("captions.json", "questions.json")]
    mixture = Mixture("two", tuple(files))
    check(open_index(mixture, folder=tmp_path / "index"), mixture)


def test_nothing_left(tmp_path):
    mixture = mixture_of(tmp_path, [{"id": 1}])
    index = open_index(mixture, folder=tmp_path / "index")
    with pytest.raises(BimbaError, match=r"rows\.json: no rows"):
        check(index, mixture, skip_bad_rows=True)
    (tmp_path / "broken.json").write_text("{")
    broken = Mixture("broken", (Source(tmp_path / "broken.json"),))
    with pytest.raises(BimbaError, match=r"broken\.json: not valid JSON"):
        check(open_index(broken, folder=tmp_path / "index"), broken)
