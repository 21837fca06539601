"""What ``evaluate.py`` left of one evaluation of one run: each question with how right it was answered."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bimba.report.files import read_summary
from bimba.report.measures import question_score
from bimba.types import BimbaError

LENGTH = "needle_frames"  # of a needle question's document: see lmms_eval_plugin/tasks/bimba_needle


@dataclass(frozen=True)
class TaskAnswers:
    """The answers of one task.

    Attributes:
        chance: of guessing.
        num_frames: read of each video; None if they differ or it is not known.
        right: question -> 0 to 1.
        lengths: question -> for how many frames its shortest needle is visible; empty for other tasks.
    """

    chance: float
    num_frames: int | None
    right: dict[str, float]
    lengths: dict[str, int]


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of one run.

    Attributes:
        trouble: what makes its numbers doubtful, such as videos that could not be read.
        throughput: of ``bimba.report.facts.throughput``.
    """

    tasks: dict[str, TaskAnswers]
    trouble: list[str]
    throughput: dict[str, Any]

    @property
    def ms_per_video(self) -> float | None:
        """Milliseconds to encode a video and prefill it, on all processes together; None if none was encoded."""
        read = self.throughput.get("decoded", 0) + self.throughput.get("stored", 0)
        return 1000 * self.throughput["encode_s"] / read if read else None


def read_evaluation(folder: Path) -> Evaluated:
    """Reads the output_dir of ``evaluate.py``.

    Raises:
        BimbaError: there is no summary, or its numbers are not those of its answers.
    """
    summary = read_summary(folder)
    trouble = [f"{task}: {reason}" for task, reason in summary.get("failed_tasks", {}).items()]
    if unreadable := summary.get("unreadable_videos"):
        trouble.append(f"{len(unreadable)} videos could not be read; their questions count as wrong")
    if summary.get("limit") is not None:
        trouble.append(f"limit={summary['limit']}: not all questions")
    try:
        tasks = {task: _task(folder, task, summary) for task in summary["tasks"]}
        throughput = dict(summary.get("throughput") or {})
    except (KeyError, TypeError, AttributeError) as error:
        raise BimbaError(
            f"{folder / 'summary.json'} is not the summary of an evaluation ({type(error).__name__}: {error}); run "
            "evaluate.py again."
        ) from error
    return Evaluated(tasks, trouble, throughput)


def _task(folder: Path, task: str, summary: Mapping[str, Any]) -> TaskAnswers:
    path = folder / "samples" / f"{task}.json"
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BimbaError(f"{path} does not hold the answers of {task} ({error}); run evaluate.py again.") from error
    reported = summary["tasks"][task]
    right = _right(samples, list(summary["measures"][task]), reported["accuracy"])
    if right is None or len(samples) != reported["n"]:
        raise BimbaError(
            f"{path}: its {len(samples)} answers do not give the accuracy of {reported['accuracy']} over "
            f"{reported['n']} questions that summary.json reports; run evaluate.py again."
        )
    names = [_identity(sample) for sample in samples]
    if len(set(names)) < len(names):  # the same question twice
        names = [f"{sample['doc_id']} {name}" for sample, name in zip(samples, names)]
    lengths = {
        name: sample["doc"][LENGTH]
        for name, sample in zip(names, samples)
        if isinstance(sample.get("doc"), Mapping) and sample["doc"].get(LENGTH) is not None
    }
    return TaskAnswers(reported["chance"], summary["frames"].get(task), dict(zip(names, right)), lengths)


def _right(samples: Sequence[Mapping[str, Any]], metrics: Sequence[str], accuracy: float) -> list[float] | None:
    """How right each answer is, by the metric whose mean the accuracy is."""
    for metric in metrics:
        scores = [question_score(sample.get(metric)) for sample in samples]
        known = [score for score in scores if score is not None]
        if known and len(known) == len(samples) and math.isclose(sum(known) / len(known), accuracy, abs_tol=1e-6):
            return known
    return None


def _identity(sample: Mapping[str, Any]) -> str:
    """A question by its words, so that it is the same one in the evaluation of another run, on another machine."""
    document = sample.get("doc")
    if not isinstance(document, Mapping):
        return str(sample["doc_id"])
    return json.dumps({key: _without_folder(value) for key, value in document.items()}, sort_keys=True, default=str)


def _without_folder(value: Any) -> Any:
    return value.rpartition("/")[2] if isinstance(value, str) and value.startswith("/") else value
