"""Single files out of zips, tars and parts of tars."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from bimba.types import BimbaError
from lmms_eval_plugin.prepare.archives import Archive, archives_in

CONTENT = {f"videos/{number}.mp4": random.Random(number).randbytes(40_000 + number) for number in range(5)}


def write_tar(path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        tar.add(path.parent, "videos", recursive=False)  # a folder
        for name, content in CONTENT.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("videos/", "")
        for name, content in CONTENT.items():
            archive.writestr(name, content)
    return path


def split(path: Path, endings: list[str]) -> list[Path]:
    """Parts of uneven sizes that end within a header and within a file."""
    content = path.read_bytes()
    path.unlink()
    cuts = [0, 700, 41_000, 41_001, len(content)]
    parts = [path.with_name(f"{path.name}{ending}") for ending in endings]
    for part, begin, end in zip(parts, cuts[:-1], cuts[1:], strict=True):
        part.write_bytes(content[begin:end])
    return parts


ARCHIVES = {
    "zip": lambda folder: [write_zip(folder / "a.zip")],
    "tar": lambda folder: [write_tar(folder / "a.tar")],
    "tar.gz": lambda folder: [write_tar(folder / "a.tar.gz", "w:gz")],
    "tar.xz": lambda folder: [write_tar(folder / "a.tar.xz", "w:xz")],
    "parts": lambda folder: split(write_tar(folder / "a.tar"), [f".part.a{letter}" for letter in "abcd"]),
    "numbered parts": lambda folder: split(write_tar(folder / "a.tar"), [f".{number:03d}" for number in range(4)]),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_single_files_are_taken_out_whole(tmp_path, kind):
    files = ARCHIVES[kind](tmp_path)
    (archive,) = archives_in(files)
    assert archive.parts == tuple(files)
    assert archive.files() == {name: len(content) for name, content in CONTENT.items()}
    targets = {name: tmp_path / "out" / f"{number}" for number, name in enumerate(list(CONTENT)[1::2])}
    assert list(archive.take(targets)) == list(targets.values())
    assert {name: target.read_bytes() for name, target in targets.items()} == {n: CONTENT[n] for n in targets}
    assert sorted((tmp_path / "out").iterdir()) == sorted(targets.values())


def test_parts_are_used_where_joining_them_was_stopped(tmp_path):
    whole = write_tar(tmp_path / "a.tar").read_bytes()
    parts = split(tmp_path / "a.tar", [".aa", ".ab", ".ac", ".ad"])
    joined = tmp_path / "a.tar"
    joined.write_bytes(whole[:5000])
    assert archives_in([joined, *parts]) == [Archive(tuple(parts))]
    joined.write_bytes(whole)
    assert archives_in([joined, *parts]) == [Archive((joined,))]


def test_other_files_are_no_archives(tmp_path):
    assert archives_in([tmp_path / name for name in ("a.mp4", "tar", "a.tarot", "a.zip.txt", "a.tar.md5sum")]) == []


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "parts"])
def test_an_archive_that_is_cut_is_named(tmp_path, kind):
    files = ARCHIVES[kind](tmp_path)
    if len(files) > 1:
        files.pop()
    else:
        files[0].write_bytes(files[0].read_bytes()[:30_000])
    (archive,) = archives_in(files)
    with pytest.raises(BimbaError, match=r"a\.\S+.*Is it all there\?"):
        list(archive.take({name: tmp_path / "out" / Path(name).name for name in archive.files()}))
    assert not list(tmp_path.glob("out/.*"))


def test_a_file_that_is_damaged_inside_a_zip_is_not_taken(tmp_path):
    path = write_zip(tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    content[20_000] ^= 0xFF
    path.write_bytes(content)
    (archive,) = archives_in([path])
    with pytest.raises(BimbaError, match="Is it all there"):
        list(archive.take({"videos/0.mp4": tmp_path / "out/0.mp4"}))
    assert list((tmp_path / "out").iterdir()) == []


def test_links_in_a_tar_are_not_files(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("0.mp4")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    (archive,) = archives_in([tmp_path / "a.tar"])
    assert archive.files() == {}
    assert list(archive.take({"0.mp4": tmp_path / "0.mp4"})) == []
    assert not (tmp_path / "0.mp4").exists()
