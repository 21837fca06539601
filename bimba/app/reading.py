"""A video just dropped, from its first frames to its selection map; one stage after the other, each shown at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from bimba.app.drawing import select
from bimba.app.models import Model, Models, failure
from bimba.app.sessions import Reading, Stage
from bimba.data.isolated import read_frames
from bimba.inference.source import VideoKey
from bimba.model.selection import Watched
from bimba.report.selection_pictures import jpeg
from bimba.types import BimbaError, Frames

log = logging.getLogger(__name__)

FIRST_FRAMES = 4  # read by themselves: of an hour, all 64 take longer than a visitor waits for a sign
THUMBNAIL, SMALL = 256, 384  # longer side of a picture in the page; of the frames that maps are drawn over


def read(reading: Reading, models: Models) -> Iterator[None]:
    """Decodes, encodes, and maps; after each step something has changed in ``reading``.

    What is wrong with the video is its last stage then, and ``reading.failed`` is set.
    """
    try:
        for _ in _read(reading, models):
            if reading.closed or models.ended.is_set():  # another video, or nobody there any more
                return
            yield
    except BimbaError as error:
        _fail(reading, reading.plain(error))
        yield
    except Exception as error:
        log.exception("Reading %s failed", reading.name)
        _fail(reading, failure(error))
        yield
    finally:
        reading.failed = reading.failed or not reading.ready.is_set()
        reading.ready.set()


def _read(reading: Reading, models: Models) -> Iterator[None]:
    reading.stages.append(Stage(f"Received {reading.name}, {_megabytes(reading.size)}", "done"))
    reading.stages.append(Stage("Decoding the first frames"))
    yield
    numbers = sorted({model.num_frames for model in models.all})
    # A short video repeats frames here; whether that is allowed is said when all are read.
    _show(reading, read_frames(reading.path, min(FIRST_FRAMES, numbers[-1]), short_videos="repeat"))
    reading.stages[-1].text = f"Decoding {_and(numbers)} frames"
    yield

    started = time.perf_counter()
    decoded = {}
    for number in numbers:
        decoded[number] = read_frames(reading.path, number, short_videos=models.settings.short_videos)
        reading.frames[number] = _small(decoded[number])
    _show(reading, reading.frames[numbers[-1]])
    frames = decoded[numbers[-1]]
    some_repeat = f"; it has only {frames.num_total}, so some repeat" if frames.num_total < numbers[-1] else ""
    length = f"{frames.duration_s:.1f} s of video"
    reading.stages[-1] = Stage(
        f"Decoded {_and(numbers)} frames of {length} in {time.perf_counter() - started:.1f} s{some_repeat}", "done"
    )
    yield

    watched = []
    for model in models.all:
        stage = Stage(f"Encoding{_for(model, models)}")
        reading.stages.append(stage)
        key = reading.keys[model.label] = model.identify(reading.path)
        encoding = models.submit(_encode, model, key, decoded[model.num_frames])
        while not _done(encoding):
            yield
        seen, seconds = encoding.result()
        reading.reads[model.label] = 1
        stage.text = (
            f"Encoded{_for(model, models)}: {model.num_patches:,} patches became {model.num_tokens:,} tokens, "
            f"{seconds:.1f} s"
        )
        stage.state = "done"
        watched.append((model, seen))
        yield
    del decoded, frames
    reading.ready.set()
    yield

    for model, seen in watched:
        if seen is None:
            reading.maps[model.label] = model.no_map or "What this model selects depends on the question: ask one."
            yield
            continue
        stage = Stage(f"Drawing what was selected{_for(model, models)}")
        reading.stages.append(stage)
        yield from draw_map(reading, models, model, seen, None)
        stage.text, stage.state = f"Drew what was selected{_for(model, models)}", "done"
        yield


def draw_map(reading: Reading, models: Models, model: Model, watched: Watched, question: str | None) -> Iterator[None]:
    """The selection map of what was watched, into ``reading.maps``."""
    mapping = models.draw(model, watched)
    while not _done(mapping):
        yield
    facts = {"video": reading.name, "checkpoint": model.label, "question": question}
    reading.maps[model.label] = select(reading.frames[model.num_frames], mapping.result(), facts)


def _fail(reading: Reading, why: str) -> None:
    """Ends what was being done. A video that was encoded by then can be asked about all the same."""
    reading.failed = not reading.ready.is_set()
    for stage in reading.stages:
        if stage.state == "working":
            stage.state = "failed"
    reading.stages.append(Stage(why, "failed"))


def _encode(model: Model, key: VideoKey, frames: Frames) -> tuple[Watched | None, float]:
    started = time.perf_counter()
    return model.encode(key, frames), time.perf_counter() - started


def _done(future: Future[Any]) -> bool:
    """After a short wait."""
    return bool(wait([future], timeout=0.2).done)


def _show(reading: Reading, frames: Frames) -> None:
    reading.pictures = [
        (float(time_s), jpeg(pixels, THUMBNAIL)) for time_s, pixels in zip(frames.times_s, frames.pixels)
    ]


def _small(frames: Frames) -> Frames:
    """The same frames with pixels that a session may keep."""
    height, width = frames.pixels.shape[1:3]
    scale = min(1.0, SMALL / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return replace(frames, pixels=np.stack([np.asarray(Image.fromarray(p).resize(size)) for p in frames.pixels]))


def _for(model: Model, models: Models) -> str:
    return f" for {model.label}" if len(models.all) > 1 else ""


def _and(numbers: list[int]) -> str:
    return " and ".join(map(str, numbers))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
