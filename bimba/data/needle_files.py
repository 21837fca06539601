"""The needle data on disk: clips rendered by ``needle``, written as H.264 mp4 files with LLaVA-Video annotations.

::

    <root>/<split>/config.json         what was asked for; another request into the same folder is refused
    <root>/<split>/videos/000000.mp4   closed GOPs of 8 frames, so a reader can jump anywhere
    <root>/<split>/annotations.json    written last: the split is complete when it is there

Clip i is a function of (seed, split, i) alone. So an interrupted run continues where it stopped, in any number of
processes, and ends with the same bytes. Processes render and encode in memory; only the caller's process writes, each
file under a temporary name first, so nobody ever sees half a file.
"""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections.abc import Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from bimba.data.needle import NUM_OPTIONS, TASKS, NeedleConfig, conversation, digit_bank, render_clip
from bimba.data.prompt import LETTERS
from bimba.types import BimbaError

FORMAT = 1  # raise it when the same parameters give other clips: old folders are then refused, not mixed with new
GOP = 8
DEFAULT_CLIP = NeedleConfig()
EQUAL_TASKS = dict.fromkeys(TASKS, 1.0)
OTHER = "Give another root (data.prepare.root=FOLDER), or remove this folder."
_TEMPORARY = ".part"
_SPLIT_KEYS = {"train": 0, "test": 1}


@dataclass(frozen=True)
class PlannedClip:
    """What clip ``index`` is about, decided before anything is drawn."""

    index: int
    task: str
    letter: str
    form: str

    @property
    def file(self) -> str:
        return f"{self.index:06d}.mp4"


def generate_splits(
    root: str | os.PathLike[str],
    num_clips: Mapping[str, int],
    config: NeedleConfig = DEFAULT_CLIP,
    own: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> None:
    """``generate`` for each split in ``num_clips``: {"train": 4000, "test": 1200}.

    Args:
        own: fields of ``config`` that differ in a split: {"test": {"needle_frames": [3, 6]}}.

    Raises:
        BimbaError: ``own`` names a split that is not written, or a field that a clip does not have.
    """
    own = own or {}
    if unknown := sorted(set(own) - set(num_clips)):
        raise BimbaError(f"own has {', '.join(unknown)}; expected some of the splits {', '.join(num_clips)}.")
    for split, count in num_clips.items():
        fields = dict(own.get(split, {}))
        if unknown := sorted(set(fields) - set(asdict(config))):
            raise BimbaError(f"own.{split} has {', '.join(unknown)}; expected some of {', '.join(asdict(config))}.")
        generate(root, split, count, replace(config, **fields), **options)


def generate(
    root: str | os.PathLike[str],
    split: str,
    num_clips: int,
    config: NeedleConfig = DEFAULT_CLIP,
    seed: int = 0,
    workers: int | None = None,
    tasks: Mapping[str, float] = EQUAL_TASKS,
    open_ended: float = 0.0,
) -> Path:
    """Writes one split of the needle data, or what is missing of it; returns at once when it is complete.

    Args:
        root: the data set's folder; the split gets ``<root>/<split>``.
        split: ``train`` or ``test``; they never share a digit image.
        workers: processes that render and encode, None for one per core; 1 works in this process.
        tasks: how often each task occurs, relative to the others.
        open_ended: share of the conversations without options, 0 to 1. Every row keeps its options and letter.

    Returns:
        The path of ``annotations.json``. Its ``video`` paths are relative to its folder.

    Raises:
        BimbaError: the arguments make no data set, or the folder holds one made with other parameters.
    """
    clips = plan(num_clips, tasks, open_ended, seed, split)
    if config.size % 2:
        raise BimbaError(f"Got size={config.size}; H.264 with 4:2:0 colour needs an even number of pixels.")
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise BimbaError(f"Got workers={workers}; give at least one process, or None for one per core.")

    folder = Path(root) / split
    annotations = folder / "annotations.json"
    parameters = {
        "format": FORMAT, "split": split, "num_clips": num_clips, "seed": seed,
        "tasks": dict(tasks), "open_ended": open_ended, "config": asdict(config),
    }  # fmt: skip
    _check_parameters(folder, parameters)
    if _is_complete(folder, clips):
        return annotations

    (folder / "videos").mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # two runs that start together: one writes, the other waits and finds it done
        _check_parameters(folder, parameters)
        if _is_complete(folder, clips):
            return annotations
        for leftover in folder.rglob(f"*{_TEMPORARY}"):  # of a process that was killed while writing
            leftover.unlink()
        _write(folder / "config.json", json.dumps(parameters, indent=1).encode())
        rows = _write_clips(folder, clips, partial(make_clip, config=config, seed=seed, split=split), workers)
        _write(annotations, json.dumps(rows, indent=1).encode())
    return annotations


def plan(num_clips: int, tasks: Mapping[str, float], open_ended: float, seed: int, split: str) -> list[PlannedClip]:
    """Task, right letter and form of each clip: in the shares asked for, every letter equally often, shuffled.

    Raises:
        BimbaError: an unknown split or task, or shares that make no sense.
    """
    if split not in _SPLIT_KEYS:
        raise BimbaError(f"Unknown needle split {split!r}; expected 'train' or 'test'.")
    if num_clips < 1:
        raise BimbaError(f"Got num_clips={num_clips}; a data set has at least one clip.")
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown or not tasks or min(tasks.values()) < 0 or sum(tasks.values()) <= 0:
        raise BimbaError(f"Got tasks={dict(tasks)}; give weights of at least 0 to any of {', '.join(TASKS)}.")
    if not 0 <= open_ended <= 1:
        raise BimbaError(f"Got open_ended={open_ended}; expected a share from 0 to 1.")

    ends = np.cumsum([tasks.get(task, 0.0) for task in TASKS])
    bounds = np.round(ends / ends[-1] * num_clips).astype(int)
    clips = []
    for i in range(num_clips):
        task = TASKS[int(np.searchsorted(bounds, i, side="right"))]
        # Letters go round in fours, and four in a row share their form: letters stay balanced in tasks and forms.
        four = i // NUM_OPTIONS
        is_open = int((four + 1) * open_ended) > int(four * open_ended)
        clips.append((task, LETTERS[i % NUM_OPTIONS], "open_ended" if is_open else "multiple_choice"))
    order = np.random.default_rng([seed, _SPLIT_KEYS[split]]).permutation(num_clips)
    return [PlannedClip(index, *clips[source]) for index, source in enumerate(order)]


def make_clip(
    job: tuple[PlannedClip, bool], config: NeedleConfig, seed: int, split: str
) -> tuple[dict[str, Any], bytes | None]:
    """The annotation of a planned clip, and its mp4 file if the job's second part asks for it."""
    planned, wants_video = job
    rng = np.random.default_rng([seed, _SPLIT_KEYS[split], planned.index])
    clip = render_clip(config, rng, digit_bank(split), planned.task, letter=planned.letter)
    row = {
        "id": f"needle_{split}_{planned.index:06d}",
        "video": f"videos/{planned.file}",
        "conversations": conversation(clip, planned.form),
        "data_source": "needle",
        "task": clip.task,
        "question": clip.question,
        "options": clip.options,
        "answer": clip.answer,
        "answer_text": clip.answer_text,
        "needles": clip.needles,
    }
    return row, encode_mp4(clip.frames, config.fps) if wants_video else None


def encode_mp4(frames: np.ndarray, fps: int) -> bytes:
    """An H.264 mp4 file of (T, height, width, 3) uint8 RGB frames; the same frames give the same bytes."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # x264's threads change the bytes
        stream.options = {
            "preset": "veryfast", "crf": "22", "g": str(GOP), "keyint_min": str(GOP), "sc_threshold": "0", "bf": "0",
            "flags": "+cgop+bitexact",
            "x264-params": "mbtree=0",  # on frames of less than about 100 pixels it reads stray memory: other bytes
        }  # fmt: skip
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _write_clips(folder: Path, clips: list[PlannedClip], make: partial[Any], workers: int) -> list[dict[str, Any]]:
    """Writes the videos that are missing; returns the rows of all."""
    from rich.progress import track

    there = {path.name for path in (folder / "videos").iterdir()}
    jobs = [(clip, clip.file not in there) for clip in clips]
    missing = sum(wants_video for _, wants_video in jobs)
    title = f"Writing {missing} of {len(clips)} needle clips to {folder}"
    rows = []
    with closing(_made(make, jobs, workers)) as results:  # closed at once on Ctrl-C, not when it is collected
        for (clip, _), (row, video) in zip(jobs, track(results, title, total=len(jobs)), strict=True):
            if video is not None:
                _write(folder / "videos" / clip.file, video)
            rows.append(row)
    return rows


def _made(make: partial[Any], jobs: list[Any], workers: int) -> Generator[Any, None, None]:
    """``map(make, jobs)``, in fresh processes unless one worker is enough. They end when this one ends, however."""
    if min(workers, len(jobs)) == 1:
        yield from map(make, jobs)
        return
    pool = ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn"), initializer=_follow_parent)
    try:
        yield from pool.map(make, jobs)
    except BrokenProcessPool as error:
        raise BimbaError(
            "A process that renders clips died, most likely for lack of memory. What is written is kept: run again, "
            "with workers=1 if it dies again."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Leaves Ctrl-C to the parent, and exits when the parent is gone, even if that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + _TEMPORARY)
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_complete(folder: Path, clips: list[PlannedClip]) -> bool:
    if not ((folder / "annotations.json").is_file() and (folder / "videos").is_dir()):
        return False
    return {path.name for path in (folder / "videos").iterdir()} >= {clip.file for clip in clips}


def _check_parameters(folder: Path, parameters: dict[str, Any]) -> None:
    """Raises a BimbaError when the folder was made with other parameters, naming those that differ."""
    try:
        found = _flat(json.loads((folder / "config.json").read_bytes()))
    except FileNotFoundError:
        if (folder / "annotations.json").exists():
            raise BimbaError(f"{folder}: has annotations.json but no config.json, so it is not ours. {OTHER}") from None
        return
    except json.JSONDecodeError as error:
        raise BimbaError(f"{folder / 'config.json'}: not valid JSON ({error}). {OTHER}") from error
    asked = _flat(json.loads(json.dumps(parameters)))
    keys = sorted(key for key in found.keys() | asked.keys() if found.get(key) != asked.get(key))
    if keys:
        differences = "; ".join(f"{key} is {found.get(key)}, asked for {asked.get(key)}" for key in keys)
        raise BimbaError(
            f"{folder}: holds needle data made with other parameters: {differences}. Ask for the same, or: {OTHER}"
        )


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
