from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from bimba.data.dataset import VideoQADataset
from bimba.data.recipe import RECIPES
from bimba.types import BadSample, BimbaError
from tests.data.files import numbered_frames, write_video


def row(
    number: int = 0, video: str = "good.mp4", question: str = "<image>\nWhat is it?", answer: str = "A cat."
) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": str(number), "video": video, "data_source": "test", "conversations": turns}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_video(tmp_path / "good.mp4", numbered_frames(16))
    (tmp_path / "bad.mp4").write_text("no video")
    return tmp_path


def open_rows(
    folder: Path, rows: object, processor, suffix: str = ".json", max_length: int = 200, **options: Any
) -> VideoQADataset:
    path = folder / f"annotations{suffix}"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) if suffix == ".jsonl" else json.dumps(rows))
    return VideoQADataset(path, folder, processor, **{"num_frames": 4, "max_length": max_length, **options})


def test_a_sample(folder, processor):
    sample = open_rows(folder, [row()], processor)[0]
    tokenizer = processor.tokenizer
    assert {key: sample[key] for key in ("id", "source", "modality", "pixel_values_images", "image_sizes")} == {
        "id": "0", "source": "test", "modality": "video", "pixel_values_images": [], "image_sizes": [],
    }  # fmt: skip
    assert [tuple(v.shape) for v in sample["pixel_values_videos"]] == [(4, 3, 16, 16)]
    assert sample["pixel_values_videos"][0].dtype == torch.float32
    video_token = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert (sample["input_ids"] == video_token).sum() == processor.num_video_tokens(4)
    learned = sample["labels"][sample["labels"] != -100]
    assert tokenizer.decode(learned) == "A cat.<|im_end|>"
    assert "What is it?" in tokenizer.decode(sample["input_ids"])


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_rows_of_both_formats(folder, processor, suffix):
    rows = [row(i, answer=f"Answer {i}, é.") for i in range(5)]
    dataset = open_rows(folder, rows, processor, suffix)
    assert len(dataset) == 5
    assert [dataset.row(i) for i in range(5)] == rows
    assert [pickle.loads(pickle.dumps(dataset)).row(i) for i in range(5)] == rows  # as a worker gets it


def test_index_outside(folder, processor):
    dataset = open_rows(folder, [row()], processor)
    for index in (1, -1):
        with pytest.raises(IndexError, match=f"Sample {index} of a data set with 1"):
            dataset[index]


@pytest.mark.parametrize("video", ["bad.mp4", "missing.mp4"])
def test_unreadable_video_is_a_bad_sample(folder, processor, video):
    dataset = open_rows(folder, [row(video=video), row(1)], processor)
    sample = dataset[0]
    assert isinstance(sample, BadSample)
    assert sample.path == str(folder / video)
    assert sample.error.startswith(sample.path)
    assert not isinstance(dataset[1], BadSample)


def test_a_short_video_is_a_bad_sample_unless_frames_may_repeat(folder, processor):
    sample = open_rows(folder, [row()], processor, num_frames=17)[0]
    assert isinstance(sample, BadSample)
    assert sample.path == str(folder / "good.mp4")
    assert sample.error.startswith(f"{sample.path}: 16 frames, and 17 were asked for.")
    repeated = open_rows(folder, [row()], processor, num_frames=17, short_videos="repeat")[0]
    assert [len(pixels) for pixels in repeated["pixel_values_videos"]] == [17]
    original = {"max_length": 400, "num_frames": 17, "recipe": RECIPES["original"]}
    assert len(open_rows(folder, [row()], processor, **original)[0]["pixel_values_videos"][0]) == 17
    assert isinstance(open_rows(folder, [row()], processor, **original, short_videos="error")[0], BadSample)
    with pytest.raises(BimbaError, match="short_videos is 'maybe'"):
        open_rows(folder, [row()], processor, short_videos="maybe")


def test_too_long_sequence_is_a_bad_sample(folder, processor):
    sample = open_rows(folder, [row()], processor, max_length=20)[0]
    assert isinstance(sample, BadSample)
    assert sample.path == str(folder / "good.mp4")
    assert sample.error.startswith(f"{sample.path}: ")
    assert "the limit is 20" in sample.error


def without(key: str) -> dict:
    return {k: v for k, v in row().items() if k != key}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("text", "str instead of an object"),
        (without("conversations"), "'conversations' is missing or empty"),
        ({**row(), "conversations": []}, "'conversations' is missing or empty"),
        ({**row(), "conversations": ["hi"]}, "a turn is 'hi'"),
        ({**row(), "conversations": [{"from": "robot", "value": "<image>"}]}, "a turn is .*robot.*'human' or 'gpt'"),
        ({**row(), "conversations": [{"from": "human"}]}, "a turn is .*text"),
        ({**row(), "conversations": row()["conversations"][:1]}, "no turn from 'gpt'"),
        (without("video"), "1 <image> tags in the human turns, and neither 'video' nor 'image'"),
        ({**row(), "video": ["a.mp4", 3]}, r"'video' is \['a.mp4', 3\]"),
        ({**row(), "video": []}, r"'video' is \[\]"),
        ({**row(), "video": "/a.mp4"}, "'video' is '/a.mp4', which leads out of the video folder"),
        ({**row(), "video": "a/../../b.mp4"}, "'video' is 'a/../../b.mp4', which leads out"),
        ({**row(), "data_source": "../x"}, "'data_source' is '../x'"),
        ({**row(), "image": "a.png"}, "both 'video' and 'image'"),
        ({**without("video"), "image": ["a.png", "../b.png"]}, "'image' is '../b.png', which leads out"),
        ({**without("video"), "image": ["a.png", "b.png"]}, "1 <image> tags in the human turns, for 2 images"),
        (row(answer=" "), "every turn from 'gpt' is empty"),
        ({**row(), "video": ""}, "'video' is ''"),
        (row(question="What is it?"), "0 <image> tags in the human turns, for one video"),
        (row(question="<image><image>"), "2 <image> tags"),
        (row(answer="<image>"), "none in the answers"),
        (row(answer="a \ud800 b"), r"'\\ud800' in 'a \\ud800' is half of a letter"),
        ({**row(), "video": "\udfff.mp4"}, r"'\\udfff' in '\\udfff' is half of a letter"),
        ({**row(), "data_source": "\ud800"}, "is half of a letter"),
        ({**row(), "id": "\ud800"}, "is half of a letter"),
    ],
)
def test_broken_rows_are_found_at_the_start(folder, processor, broken, message):
    with pytest.raises(BimbaError, match=rf"annotations\.json, row 2: .*{message}"):
        open_rows(folder, [row(1), row(2), broken], processor)
    with pytest.raises(BimbaError, match=rf"annotations\.jsonl, line 3: .*{message}"):
        open_rows(folder, [row(1), row(2), broken], processor, ".jsonl")


def open_text(folder: Path, text: str | bytes, processor, name: str = "annotations.json") -> VideoQADataset:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return VideoQADataset(path, folder, processor, num_frames=4, max_length=200)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[{", r"a\.json: not valid JSON"),
        ("a.json", b"\xff\xfe\x00binary", r"a\.json: not valid JSON"),
        ("a.json", "[]", r"a\.json: no rows"),
        ("a.json", "{}", r"a\.json: holds a JSON dict.*list of rows"),
        ("a.jsonl", json.dumps(row()) + "\n\n{broken\n", r"a\.jsonl, line 3: not valid JSON"),
        ("a.jsonl", "\n", r"a\.jsonl: no rows"),
    ],
)
def test_broken_files(folder, processor, name, text, message):
    with pytest.raises(BimbaError, match=message):
        open_text(folder, text, processor, name)


def test_missing_file_and_folder(folder, processor):
    with pytest.raises(BimbaError, match=r"nowhere\.json: no such annotation file"):
        VideoQADataset(folder / "nowhere.json", folder, processor, 4, 200)
    with pytest.raises(BimbaError, match=r"nowhere: no such folder"):
        VideoQADataset(folder / "a.json", folder / "nowhere", processor, 4, 200)
