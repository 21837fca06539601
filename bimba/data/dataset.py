"""Annotations and media to training samples: the rows of a mixture, read one at a time.

Every row is checked when the data set is opened, so that a broken one stops a run at its start and not after hours.
What a row is, :mod:`bimba.data.rows` says; which rows of which files there are, :mod:`bimba.data.mixture`.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bimba.data.index import Index, check, open_index
from bimba.data.index_rows import MODALITIES
from bimba.data.lengths import Processor, estimated_tokens
from bimba.data.media import image_size, read_image, read_video
from bimba.data.mixture import Mixture
from bimba.data.packed import Packed, PackedMedia
from bimba.data.recipe import DEFAULT, Recipe
from bimba.data.rows import IMAGE, VIDEO, media_of, place
from bimba.data.sampling import original_step
from bimba.data.tokenize import IMAGE_TOKEN, VIDEO_TOKEN, Conversation, tokenize_conversation
from bimba.data.transform import frames_to_pixels
from bimba.data.turns import with_time_instruction, without_last_question
from bimba.data.video import check_short_videos
from bimba.types import (
    BadSample,
    BimbaError,
    Frames,
    ImageReadError,
    SequenceTooLongError,
    ShortVideos,
    VideoDecodeError,
)

TooLong = Literal["skip", "drop_turns"]  # of a sample over the limit: skip and count it, or drop its last turns first


class VideoQADataset(Dataset[dict[str, Any] | BadSample]):
    """Conversations about videos, about images, and about neither.

    Args:
        annotations: a ``Mixture``, or a ``.json`` file with a list of rows or a ``.jsonl`` file with one row per line;
            or ``Packed``, which has the media too.
        video_folder: what a file's ``video`` and ``image`` paths are relative to; of the others None: they say so.
        processor: gives the tokenizer, the image processor and the number of tokens of a video or an image.
        num_frames: how many frames of each video are read.
        max_length: the longest sequence the model takes, in tokens.
        recipe: what a sample is made of.
        short_videos: whether a video with fewer frames than ``num_frames`` is a bad sample ("error"), or some of its
            frames "repeat"; None: as the recipe says.
        too_long: what becomes of a longer sequence: "skip" makes it a bad sample; "drop_turns" takes questions and
            their answers from its end until it fits, and skips it if the first alone does not.
        skip_bad_rows, allow_duplicate_ids, empty_allowed: see ``index.check``.

    Attributes:
        index: of the rows.
        lengths: (samples,) words in each conversation; negative without a medium.

    Raises:
        BimbaError: a file or folder is missing, or rows are malformed: the message names file and row of each.
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str] | Mixture | Packed,
        video_folder: str | os.PathLike[str] | None,
        processor: Processor,
        num_frames: int,
        max_length: int,
        recipe: Recipe = DEFAULT,
        short_videos: ShortVideos | None = None,
        too_long: TooLong = "skip",
        skip_bad_rows: bool = False,
        allow_duplicate_ids: bool = False,
        empty_allowed: bool = False,
    ):
        if not isinstance(annotations, Mixture | Packed):
            if video_folder is None:
                raise BimbaError(f"There is no folder for the videos of {annotations}; give video_folder.")
            annotations = Mixture.of_file(annotations, video_folder)
        if too_long not in get_args(TooLong):
            raise BimbaError(f"too_long is {too_long!r}; expected one of {', '.join(get_args(TooLong))}.")
        self.processor = processor
        self.num_frames = num_frames
        self.max_length = max_length
        self.recipe = recipe
        self.too_long = too_long
        self.short_videos = recipe.short_videos if short_videos is None else short_videos
        check_short_videos(self.short_videos)
        self.mixture: Mixture
        self.index: Index
        self._packed: PackedMedia | None = None
        if isinstance(annotations, Packed):
            self.mixture, self.index, self._packed = annotations.open(recipe.literal_tags)
        else:
            self.mixture, self.index = annotations, open_index(annotations, recipe.literal_tags)
        check(self.index, self.mixture, skip_bad_rows, allow_duplicate_ids, empty_allowed)
        self._check_media()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def lengths(self) -> np.ndarray:
        has_medium = self.index.column("media") > 0
        return np.where(has_medium, 1, -1) * self.index.column("words")

    @property
    def modalities(self) -> np.ndarray:
        """(samples,) position in ``index.MODALITIES``."""
        return self.index.column("modality")

    def estimated_tokens(self) -> np.ndarray:
        """(samples,) int64: about how long each sequence is; images and texts count as rather too long."""
        return estimated_tokens(self.index, self.processor, self.num_frames)

    def row(self, index: int) -> dict[str, Any]:
        """The annotation of one sample, as in the file."""
        return self.index.row(index)

    def where(self, index: int) -> str:
        """File and row of one sample, in words."""
        return place(self.mixture.sources[self.index.value("file", index)].path, self.index.value("number", index))

    def media_paths(self, index: int) -> tuple[str, list[Path]]:
        """Of what kind the media of one sample are (see ``rows.media_of``), and where they lie.

        Of packed data these are names; :meth:`at_hand` makes files of them.
        """
        row, source = self.row(index), self.mixture.sources[self.index.value("file", index)]
        kind, names = media_of(row)
        if kind == VIDEO:
            folder = source.video_folder
            if folder is None and self.mixture.video_root is not None:
                folder = self.mixture.video_root / (row.get("data_source") or "")
        else:
            folder = self.mixture.image_root if source.image_folder is None else source.image_folder
        # _check_media has seen to it that there is a folder wherever there are names.
        return kind, [Path(folder or "") / name for name in names]

    def is_there(self, path: Path) -> bool:
        """Whether there is such a medium; ``path`` is one of :meth:`media_paths`."""
        return path.exists() if self._packed is None else self._packed.item_of(path) is not None

    def at_hand(self, path: Path, kind: str) -> AbstractContextManager[Path]:
        """A medium as a file or a folder, as long as the context lasts."""
        return nullcontext(path) if self._packed is None else self._packed.at_hand(path, kind)

    def count_tokens(self, index: int) -> int | None:
        """How long the sequence of one sample is, without the time instruction; None: an image that cannot be read.

        Of videos nothing is read, of images their size.
        """
        turns = self.row(index)["conversations"]
        kind, paths = self.media_paths(index)
        try:
            sizes = [self._image_size(path) for path in paths] if kind == IMAGE else []
        except ImageReadError:
            return None
        if kind == VIDEO:
            counts = [self.processor.num_video_tokens(self.num_frames)] * len(paths)
        else:
            counts = [self.processor.num_image_tokens(size, whole=len(sizes) > 1) for size in sizes]
        medium_token = IMAGE_TOKEN if sizes else VIDEO_TOKEN
        sample = tokenize_conversation(turns, self.processor.tokenizer, counts, None, self.recipe, medium_token)
        return len(sample["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Any] | BadSample:
        """A sample, or a ``BadSample`` for a medium that cannot be read, a short video, or a sequence that is too long.

        Returns:
            ``input_ids`` (L,) int64, ``labels`` (L,) int64, ``pixel_values_videos`` [(T, 3, h, w) float32],
            ``pixel_values_images`` [(tiles, 3, h, w) float32], ``image_sizes`` [(width, height)], and the strings
            ``id``, ``source`` and ``modality``.
        """
        return self.sample(index)

    def sample(self, index: int, epoch: int = 0) -> dict[str, Any] | BadSample:
        """A sample as it is in an epoch, counted from 0: with ``Recipe.instruction_repeats`` each has its own."""
        if not 0 <= index < len(self):
            raise IndexError(f"Sample {index} of a data set with {len(self)} samples.")
        index = int(index)
        row = self.row(index)
        kind, paths = self.media_paths(index)
        first = str(paths[0]) if paths else self.where(index)
        try:
            sample = self._read(row["conversations"], kind, paths, epoch)
        except (VideoDecodeError, ImageReadError) as error:
            culprit = next((str(path) for path in paths if str(error).startswith(f"{path}:")), first)
            return BadSample(path=culprit, error=str(error))
        except SequenceTooLongError as error:  # knows nothing of files
            return BadSample(path=first, error=f"{first}: {error}")
        described = {
            "id": self.where(index) if row.get("id") is None else str(row["id"]),
            "source": self.index.source(index),
            "modality": self.index.modality(index),
        }
        return {**sample, **described}

    def _read(self, turns: Conversation, kind: str, paths: list[Path], epoch: int) -> dict[str, Any]:
        videos = [self._read_video(path) for path in paths] if kind == VIDEO else []
        images = [self._read_image(path) for path in paths] if kind == IMAGE else []
        if videos:
            turns = self._timed(turns, videos, epoch)
        whole = len(images) > 1
        counts = [self.processor.num_video_tokens(self.num_frames)] * len(videos)
        counts += [self.processor.num_image_tokens(image.size, whole=whole) for image in images]
        return {
            **self._tokenize(turns, counts, IMAGE_TOKEN if images else VIDEO_TOKEN),
            "pixel_values_videos": [frames_to_pixels(frames, self.processor.image_processor) for frames in videos],
            "pixel_values_images": [self.processor.image_tiles(image, whole=whole) for image in images],
            "image_sizes": [image.size for image in images],
        }

    def _read_video(self, path: Path) -> Frames:
        with self.at_hand(path, VIDEO) as file:
            frames = read_video(file, self.num_frames, self.short_videos)
            if self.recipe.refuses_slow_videos:
                _check_speed(frames)
        return frames

    def _read_image(self, path: Path) -> Image.Image:
        with self.at_hand(path, IMAGE) as file:
            return read_image(file)

    def _image_size(self, path: Path) -> tuple[int, int]:
        with self.at_hand(path, IMAGE) as file:
            return image_size(file)

    def _tokenize(self, turns: Conversation, counts: list[int], medium_token: str) -> dict[str, Tensor]:
        while True:
            try:
                return tokenize_conversation(
                    turns, self.processor.tokenizer, counts, self.max_length, self.recipe, medium_token
                )
            except SequenceTooLongError:
                shorter = without_last_question(turns) if self.too_long == "drop_turns" else None
                if shorter is None:
                    raise
                turns = shorter

    def _timed(self, conversation: Conversation, videos: list[Frames], epoch: int) -> Conversation:
        """The conversation with the time instruction, if the recipe has one."""
        if not self.recipe.time_instruction:
            return conversation
        (frames,) = videos  # _check_media has refused several
        duration_s, times_s = frames.num_total / frames.average_fps, frames.indices / frames.average_fps
        for _ in range(1 + epoch if self.recipe.instruction_repeats else 1):
            conversation = with_time_instruction(conversation, duration_s, times_s)
        return conversation

    def _check_media(self) -> None:
        """Raises a BimbaError for media that this model, this recipe or this mixture has no place for."""
        media, modalities = self.index.column("media"), self.modalities
        is_video = modalities == MODALITIES.index(VIDEO)
        is_image = (media > 0) & ~is_video
        if is_image.any():
            self.processor.num_image_tokens((1, 1))  # a model without images says so
        if self.recipe.time_instruction and (several := is_video & (media > 1)).any():
            raise BimbaError(
                f"{self.where(int(several.argmax()))}: several videos, and the recipe's time instruction is about one "
                "(the original has none for several). Use data.recipe=default, or drop such rows."
            )
        sources, files = self.mixture.sources, self.index.column("file")
        for chosen, key, own, root in (
            (is_video, "video", [s.video_folder for s in sources], self.mixture.video_root),
            (is_image, "image", [s.image_folder for s in sources], self.mixture.image_root),
        ):
            homeless = [sources[file].path for file in np.unique(files[chosen]) if root is None and own[file] is None]
            if homeless:
                raise BimbaError(
                    f"{homeless[0]}: names {key}s, and nobody says which folder they are in. Give data.{key}_root, or "
                    f"{key}_folder in its entry of the mixture."
                )


def _check_speed(frames: Frames) -> None:
    """Raises a VideoDecodeError for a video that the original cannot sample."""
    try:
        original_step(frames.average_fps)
    except BimbaError as error:
        raise VideoDecodeError(f"{frames.path}: {error}") from error
