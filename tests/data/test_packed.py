"""Packed data: the same samples in the same order as from files, from a folder and from an object store."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from bimba.cli import main
from bimba.data import packed as packed_module
from bimba.data.datamodule import mixture_data, streamed_data
from bimba.data.dataset import VideoQADataset
from bimba.data.mixture import read_mixture
from bimba.data.packed import Packed
from bimba.data.packing import pack
from bimba.types import BadSample, BimbaError
from tests.data import layout
from tests.data.object_store import object_store

CHUNKED_MB = 1
OPTIONS: dict[str, Any] = {"num_frames": 4, "max_length": 1000, "global_batch_size": 4, "batch_size": 2, "seed": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A mixture, two of whose media are not what they should be."""
    folder = tmp_path_factory.mktemp("LLaVA-Video-178K")
    mixture = layout.make(folder)
    (folder / "broken.mp4").write_text("no video")
    rows = [layout.video("", number, name) for number, name in enumerate(("broken.mp4", "absent.mp4"))]
    layout.write(folder / "bad.json", [{**row, "data_source": None} for row in rows])
    mixture.write_text(yaml.safe_dump({"datasets": [*layout.MIXTURE, {"json_path": "bad.json"}]}))
    return folder


@pytest.fixture(scope="module")
def source(root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "data"
    command = ["data", "pack", str(root / "mixture.yaml"), str(folder), "--video-root", str(root), "--workers", "2"]
    assert main([*command, "--allow-missing", "--chunk-mb", str(CHUNKED_MB)]) == 0
    return folder


def of_files(root: Path, processor: Any, **options: Any) -> Any:
    return mixture_data(str(root / "mixture.yaml"), str(root), processor=processor, **{**OPTIONS, **options})


def of_chunks(source: Path | str, processor: Any, **options: Any) -> Any:
    return streamed_data(str(source), processor=processor, **{**OPTIONS, **options})


def assert_equal(one: Any, other: Any, root: Path) -> None:
    """The same samples or batches, but for what paths start from."""
    assert type(one) is type(other)
    if isinstance(one, BadSample):
        assert one.path == f"{root}/{other.path}"
        assert ("no such file" in one.error) == ("no such file" in other.error)
        if "no such file" not in one.error:
            assert one.error == other.error.replace(other.path, one.path)
    elif isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            assert_equal(one[key], other[key], root)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other):
            assert_equal(a, b, root)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_every_sample_is_the_same(root, source, processor):
    files, chunks = of_files(root, processor).open_anyway(), of_chunks(source, processor).open_anyway()
    assert len(files) == len(chunks) == 14
    assert files.lengths.tolist() == chunks.lengths.tolist()
    chunks = pickle.loads(pickle.dumps(chunks))  # as for a worker
    for i in range(len(files)):
        assert_equal(files[i], chunks[i], root)
        assert files.count_tokens(i) == chunks.count_tokens(i)
    assert [type(chunks[i]) for i in (12, 13)] == [BadSample, BadSample]
    assert chunks.where(13) == "bad.json, row 1"
    assert not list(Path(tempfile.gettempdir()).glob("bimba-medium-*"))


def test_they_can_be_packed_from_within_the_folder_of_the_videos(root, processor, tmp_path, monkeypatch):
    """Where a video's name is a path, too, which litdata takes for a file of its own to read."""
    monkeypatch.chdir(root)
    out = Path(os.path.relpath(tmp_path / "packed"))
    words = ["data", "pack", "mixture.yaml", str(out), "--video-root", ".", "--workers", "2", "--allow-missing"]
    assert main(words) == 0
    files, chunks = of_files(root, processor).open_anyway(), of_chunks(out, processor).open_anyway()
    assert len(files) == len(chunks) == 14
    for i in range(len(files)):
        assert_equal(files[i], chunks[i], root)


@pytest.mark.parametrize("changes", [{}, {"sample_order": "by_modality_and_length"}, {"max_batch_tokens": 1500}])
def test_so_is_their_order_with_workers_and_processes_and_after_a_resume(root, source, processor, changes):
    for rank, step, workers in ((0, 0, 0), (1, 0, 2), (0, 1, 0)):
        batches = []
        for data in (
            of_files(root, processor, val_samples=2, **changes),
            of_chunks(source, processor, val_samples=2, num_workers=workers, **changes),
        ):
            data.trainer = SimpleNamespace(
                world_size=2, global_rank=rank, global_step=step, accumulate_grad_batches=1
            )  # a run of two processes that has done so many steps
            data.setup("fit")
            batches.append([list(data.train_dataloader()), list(data.val_dataloader())])
        assert len(batches[0][0]) > 0
        assert_equal(*batches, root)


def test_of_an_object_store_only_the_media_that_are_read_are_fetched(root, source, processor, tmp_path, monkeypatch):
    shutil.copytree(source, tmp_path / "bucket" / "llava")
    for key, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    monkeypatch.setenv("BIMBA_INDEX_DIR", str(tmp_path / "index"))
    files = of_files(root, processor).open_anyway()
    with object_store(tmp_path) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        chunks = of_chunks("s3://bucket/llava", processor).open_anyway()
        store.asked.clear()
        for i in (0, 7, 11, 12):
            assert_equal(files[i], chunks[i], root)
        fetched = [part for method, path, part in store.asked if path.endswith(".bin")]
        assert len(fetched) == 2 * 4  # where it lies and what it is, of a video, two pictures and the broken video
        assert None not in fetched
        store.asked.clear()
        of_chunks("s3://bucket/llava", processor).open_anyway()
        pieces = [path for _, path, _ in store.asked if path.endswith(".bin")]
        assert len(pieces) == 2  # the header; the index is there
        store.is_down = True
        assert "cannot be fetched from s3://bucket/llava (AccessDenied: " in chunks[0].error
        with pytest.raises(BimbaError, match=r"s3://bucket/llava: cannot be opened \("):
            of_chunks("s3://bucket/llava", processor).open_anyway()
    kept = [path.name for path in (tmp_path / "index").rglob("*") if path.is_file()]
    assert not any(name.endswith(".bin") for name in kept)


def test_they_can_be_checked(source, capsys):
    assert main(["data", "check", "streaming", f"data.source={source}", "--frames", "4"]) == 1
    said = capsys.readouterr().out
    assert "14 rows" in said
    assert "missing: 1\n  bad.json, row 1: there is no absent.mp4" in said
    assert "unreadable: 1\n  bad.json, row 0: broken.mp4: not a media file" in said


def test_what_is_not_packed_data(source, processor, tmp_path):
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(BimbaError, match=f"{place}: no packed data. Expected a folder, or an address"):
            of_chunks(place, processor).open_anyway()
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(BimbaError, match="cannot be opened"):
        of_chunks(tmp_path, processor).open_anyway()
    with pytest.raises(BimbaError, match=r"data\.streaming is 'webdataset'; expected litdata"):
        of_chunks(source, processor, streaming="webdataset")
    with pytest.raises(BimbaError, match="packed for recipes with literal_tags=False, and this one has True"):
        of_chunks(source, processor, recipe="original").open_anyway()


def test_a_damaged_index_is_noticed(source, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    for chunk in copy.glob("*.bin"):
        content = chunk.read_bytes()
        chunk.write_bytes(content.replace(b'"num_problems": 0', b'"num_problems": 1'))
    with pytest.raises(BimbaError, match="its index is damaged"):
        Packed(str(copy)).open(folder=tmp_path / "index")
    assert not list((tmp_path / "index").rglob("about.json"))


def test_without_litdata(source, processor, monkeypatch):
    monkeypatch.setattr(packed_module, "find_spec", lambda name: None)
    with pytest.raises(BimbaError, match=r'not installed: pip install "bimba\[streaming\]"'):
        of_chunks(source, processor)


def test_what_cannot_be_packed(root, processor, tmp_path, capsys):
    dataset = VideoQADataset(read_mixture(root / "mixture.yaml", root), None, processor, 4, 1000)
    with pytest.raises(BimbaError, match=rf"1 of 7 media cannot be packed(?s:.*)row 1: there is no {root}/absent.mp4"):
        pack(dataset, str(tmp_path / "out"))
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(BimbaError, match="is there already"):
            pack(dataset, str(place), allow_missing=True)
    with pytest.raises(BimbaError, match="ftp://x: no store that litdata writes to"):
        pack(dataset, "ftp://x", allow_missing=True)
    assert main(["data", "pack", str(root / "mixture.yaml"), str(tmp_path / "out"), "--workers", "0"]) == 2
    assert not (tmp_path / "out").exists()
