"""Annotations and videos to training samples: the rows of a LLaVA-Video-178K file, read one video at a time.

A row is ``{"id": ..., "video": path, "conversations": [{"from": "human", "value": "<image>\\nWho scored?"},
{"from": "gpt", "value": "Number 7."}]}``; other keys are kept aside. Every row is checked when the file is opened, so
that a broken one stops a run at its start and not after hours.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from bimba.data.prompt import MEDIUM_TAG, time_instruction
from bimba.data.recipe import DEFAULT, Recipe
from bimba.data.sampling import original_step
from bimba.data.tokenize import Conversation, tokenize_conversation
from bimba.data.transform import frames_to_pixels
from bimba.data.video import check_short_videos, read_frames
from bimba.types import BadSample, BimbaError, Frames, SequenceTooLongError, ShortVideos, VideoDecodeError


class Processor(Protocol):
    """What the data path needs of a ``BimbaProcessor``."""

    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor

    def num_video_tokens(self, num_frames: int) -> int: ...


class VideoQADataset(Dataset[dict[str, Any] | BadSample]):
    """Conversations about videos, one video per row.

    Args:
        annotations: a ``.json`` file with a list of rows, or a ``.jsonl`` file with one row per line.
        video_folder: what the rows' ``video`` paths are relative to.
        processor: gives the tokenizer, the image processor and the number of tokens of a video.
        num_frames: how many frames of each video are read.
        max_length: the longest sequence the model takes, in tokens.
        recipe: what a sample is made of.
        short_videos: whether a video with fewer frames than ``num_frames`` is a bad sample ("error"), or some of its
            frames "repeat"; None: as the recipe says.

    Attributes:
        lengths: (samples,) words in each conversation.

    Raises:
        BimbaError: a file or folder is missing, or a row is malformed; the message names file and row.
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        video_folder: str | os.PathLike[str],
        processor: Processor,
        num_frames: int,
        max_length: int,
        recipe: Recipe = DEFAULT,
        short_videos: ShortVideos | None = None,
    ):
        self.video_folder = Path(video_folder)
        if not self.video_folder.is_dir():
            raise BimbaError(f"{self.video_folder}: no such folder. Expected the folder that holds the videos.")
        self.processor = processor
        self.num_frames = num_frames
        self.max_length = max_length
        self.recipe = recipe
        self._reads: Counter[int] = Counter()  # how often this process has read each sample
        self.short_videos = recipe.short_videos if short_videos is None else short_videos
        check_short_videos(self.short_videos)
        # One block of bytes: a million small dicts would be copied into every worker, page by page, by the mere
        # counting of references to them.
        lines, lengths = [], []
        for row in _read_rows(Path(annotations)):
            lines.append(json.dumps(row).encode())
            lengths.append(sum(len(turn["value"].split()) for turn in row["conversations"]))
        self._bytes = b"".join(lines)
        self._ends = np.cumsum([len(line) for line in lines])
        self._length = len(lines)
        self.lengths = np.array(lengths)

    def __len__(self) -> int:
        return self._length

    def row(self, index: int) -> dict[str, Any]:
        """The annotation of one sample, as in the file."""
        start = self._ends[index - 1] if index > 0 else 0
        row: dict[str, Any] = json.loads(self._bytes[start : self._ends[index]])
        return row

    def __getitem__(self, index: int) -> dict[str, Tensor | list[Tensor]] | BadSample:
        """A sample, or a ``BadSample`` for a video that cannot be read or is too short, or a sequence that is too long.

        Returns:
            ``input_ids`` (L,) int64, ``labels`` (L,) int64, ``pixel_values_videos`` [(T, 3, h, w) float32].
        """
        if not 0 <= index < self._length:
            raise IndexError(f"Sample {index} of a data set with {self._length} samples.")
        row = self.row(index)
        path = self.video_folder / row["video"]
        counts = [self.processor.num_video_tokens(self.num_frames)]
        try:
            frames = read_frames(path, self.num_frames, short_videos=self.short_videos)
            if self.recipe.refuses_slow_videos:
                _check_speed(frames)
            turns = self._timed(row["conversations"], frames, index)
            tokens = tokenize_conversation(turns, self.processor.tokenizer, counts, self.max_length, self.recipe)
        except VideoDecodeError as error:
            return BadSample(path=str(path), error=str(error))
        except SequenceTooLongError as error:  # knows nothing of files
            return BadSample(path=str(path), error=f"{path}: {error}")
        return {**tokens, "pixel_values_videos": [frames_to_pixels(frames, self.processor.image_processor)]}

    def _timed(self, conversation: Conversation, frames: Frames, index: int) -> Conversation:
        """The conversation with the time instruction, if the recipe has one."""
        if not self.recipe.time_instruction:
            return conversation
        duration_s, times_s = frames.num_total / frames.average_fps, frames.indices / frames.average_fps
        self._reads[index] += 1
        for _ in range(self._reads[index] if self.recipe.instruction_repeats else 1):
            conversation = with_time_instruction(conversation, duration_s, times_s)
        return conversation


def _check_speed(frames: Frames) -> None:
    """Raises a VideoDecodeError for a video that the original cannot sample."""
    try:
        original_step(frames.average_fps)
    except BimbaError as error:
        raise VideoDecodeError(f"{frames.path}: {error}") from error


def with_time_instruction(conversation: Conversation, duration_s: float, times_s: np.ndarray) -> Conversation:
    """The conversation with one more time instruction in front of its first turn, word for word the original's.

    There is no space before "Please" and a blank line before the question: of ``<image>\\n`` only the tag moves up.
    """
    first, *others = conversation
    question = first["value"].replace(MEDIUM_TAG, "")
    instruction = f"{time_instruction(duration_s, times_s)}Please answer the following questions related to this video."
    return [{**first, "value": f"{MEDIUM_TAG}\n{instruction}\n{question}"}, *others]


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The checked rows of an annotation file."""
    if not path.is_file():
        raise BimbaError(f"{path}: no such annotation file. Expected a .json or .jsonl file in LLaVA-Video's format.")
    empty = True
    for where, row in _parse(path):
        _check_row(row, where)
        empty = False
        yield row
    if empty:
        raise BimbaError(f"{path}: no rows. Expected at least one conversation about a video.")


def _parse(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each row stands ("file, line 3"; rows of a list count from 0), and the row."""
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, _loads(line, where)
        return
    rows = _loads(path.read_bytes(), str(path))
    if not isinstance(rows, list):
        raise BimbaError(f"{path}: holds a JSON {type(rows).__name__}. Expected a list of rows, or a .jsonl file.")
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", row


def _loads(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BimbaError(f"{where}: not valid JSON ({error}). Repair the file or fetch it again.") from error


def _check_row(row: Any, where: str) -> None:
    """Raises a BimbaError that begins with ``where`` unless the row is a conversation about one video."""
    if not isinstance(row, dict):
        raise BimbaError(f"{where}: {type(row).__name__} instead of an object with 'video' and 'conversations'.")
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise BimbaError(f"{where}: 'conversations' is missing or empty. Expected a list of turns.")
    for turn in turns:
        if not (isinstance(turn, dict) and turn.get("from") in ("human", "gpt") and isinstance(turn.get("value"), str)):
            raise BimbaError(f"{where}: a turn is {turn!r}. Expected {{'from': 'human' or 'gpt', 'value': text}}.")
    if all(turn["from"] != "gpt" for turn in turns):
        raise BimbaError(f"{where}: no turn from 'gpt', so there is no answer to learn. Add one or drop the row.")

    video = row.get("video")
    if not isinstance(video, str) or not video:
        received = "a question with no video" if video is None else f"'video' is {video!r}"
        raise BimbaError(f"{where}: {received}. Expected 'video', a path relative to the video folder.")
    tags = sum(turn["value"].count(MEDIUM_TAG) for turn in turns if turn["from"] == "human")
    if tags != 1 or any(MEDIUM_TAG in turn["value"] for turn in turns if turn["from"] == "gpt"):
        raise BimbaError(
            f"{where}: {tags} {MEDIUM_TAG} tags in the human turns, for one video. "
            "Put exactly one there, where the video belongs, and none in the answers."
        )
