"""[6] What a model selected of a video: its frames, the map of its compressor's last scan, and the answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bimba.data.isolated import read_frames
from bimba.data.prompt import bare_options
from bimba.data.transform import frames_to_pixels
from bimba.inference.engine import VideoQA
from bimba.model.selection import SelectionMap, last_scan, selection_map, spread_queries, watch
from bimba.types import BimbaError, Frames, ShortVideos

NUM_QUERIES = 128


@dataclass(frozen=True)
class Looked:
    """A video as it was sampled, and what was selected of it; ``answer`` is None if nothing was asked."""

    frames: Frames
    selection: SelectionMap
    answer: str | None


@torch.inference_mode()
def look(
    engine: VideoQA,
    path: str | os.PathLike[str],
    *,
    num_frames: int | None = None,
    question: str | None = None,
    options: Sequence[str] | None = None,
    short: bool = False,
    short_videos: ShortVideos = "error",
    num_queries: int = NUM_QUERIES,
) -> Looked:
    """Encodes a video, answers a question about it, and maps what the compressor selected meanwhile.

    Args:
        num_frames, short_videos: as for ``VideoQA.read``.
        question: a compressor that is conditioned on questions needs one; any other selects the same for all.
        options, short: how it is asked, as for ``EncodedVideo.choose`` and ``ask``.
        num_queries: how many of the compressor's queries the map is made of, spread over the video.

    Raises:
        BimbaError: no compressor that scans; no question where one is needed; what reading and asking raise.
    """
    if num_queries < 1:
        raise BimbaError(f"Received {num_queries} queries to look at; expected 1 or more.")
    compressor = engine.model.compressor
    last_scan(compressor)  # before the video is read
    if compressor is not None and compressor.question_conditioned and question is None:
        raise BimbaError("What this model selects depends on the question; give one.")
    if question is None and (options or short):
        raise BimbaError("Options, or a short answer, are of a question; give one.")
    num_frames = engine.num_frames if num_frames is None else num_frames
    engine.check_length(engine.processor.num_video_tokens(num_frames), num_frames)
    engine.on_stage("decoding")
    frames = read_frames(path, num_frames, short_videos=short_videos)
    answer = None
    with watch(compressor) as seen:
        video = engine.encode_pixels(frames_to_pixels(frames, engine.processor.image_processor))
        if question is not None and options:
            letter = video.choose(question, options).letter
            answer = f"{letter}. {bare_options(options)[ord(letter) - ord('A')]}"
        elif question is not None:
            answer = video.ask(question, short=short)
    watched = seen[-1]
    queries = spread_queries(watched.queries.shape[1], num_queries)
    return Looked(frames, selection_map(watched, queries), answer)
