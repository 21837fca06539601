"""What an evaluation found, put together for ``summary.json``, the report and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bimba.report import plots
from bimba.report.accuracy import TaskScore
from bimba.report.examples import Example
from bimba.report.measures import Measure
from bimba.types import ShortVideos

UNREAD = {  # metrics that count what could not be read
    "no_letter": "answers without a letter",
    "outside_options": "answers outside the options",
    "no_reference": "documents without a right letter",
}


@dataclass(frozen=True)
class Run:
    """How an evaluation was made.

    Attributes:
        source: of the data, "miniature" for made-up questions; None where a benchmark has no choice.
        limit: questions of each task; None: all.
        fingerprint: of the weights and whatever else an answer depends on in a checkpoint.
        changes: key, default, value of each setting that is not the default.
        throughput: of ``bimba.report.facts.throughput``.
        unreadable: path -> error of each video that could not be read.
        short: the videos with fewer frames than were asked for.
        short_videos: what became of these.
        asked: task -> document -> its video file, prompt and number of frames.
    """

    checkpoint: str
    fingerprint: str
    benchmark: str
    source: str | None
    limit: float | None
    command: str
    changes: list[tuple[str, Any, Any]]
    versions: dict[str, str]
    device: str
    throughput: dict[str, float | int | None]
    unreadable: dict[str, str]
    short: list[str]
    short_videos: ShortVideos
    asked: Mapping[str, Mapping[int, tuple[str, str, int]]]


@dataclass(frozen=True)
class Task:
    """One task: what it reported, by category too, and a few of its questions.

    Attributes:
        score: by the metric of ``conf/benchmark``; None where only others know the answers.
        published: the entry of ``bimba.report.accuracy.compare`` with ``low`` and ``high`` of what was found, from 0 to
            100, and ``found_num_frames``; None where nothing was published.
        lenient: accuracy by the lenient reading of an answer.
        num_frames: of each video.
        failed: why there is no result; empty if there is one.
        remark: why there are no categories; empty if nothing is amiss.
    """

    name: str
    score: TaskScore | None = None
    published: dict[str, Any] | None = None
    lenient: Measure | None = None
    measures: list[Measure] = field(default_factory=list)
    breakdown: dict[str, list[TaskScore]] = field(default_factory=dict)
    tries: dict[int, int] = field(default_factory=dict)
    num_frames: int | None = None
    examples: list[Example] = field(default_factory=list)
    failed: str = ""
    remark: str = ""

    @property
    def published_is(self) -> str:
        """Where the published number lies, seen from the interval of what was found."""
        entry = self.published
        if entry is None or entry["low"] is None:
            return ""
        if entry["published"] < entry["low"]:
            return "below"
        return "above" if entry["published"] > entry["high"] else "inside"

    @property
    def unread(self) -> dict[str, int]:
        """How many answers, and right answers, were no letter of their options; of tasks that count it."""
        return {UNREAD[m.metric]: round(m.value) for m in self.measures if m.metric in UNREAD}

    def plot(self) -> plots.Plot | None:
        return plots.categories(self.name, self.breakdown, self.tries)


@dataclass(frozen=True)
class Evaluation:
    """A run and its tasks, in the order of ``conf/benchmark``."""

    run: Run
    tasks: list[Task]

    @property
    def failed(self) -> dict[str, str]:
        return {task.name: task.failed for task in self.tasks if task.failed}

    @property
    def incomplete(self) -> bool:
        return bool(self.run.unreadable)

    @property
    def scores(self) -> list[TaskScore]:
        return [task.score for task in self.tasks if task.score is not None]

    @property
    def published(self) -> dict[str, dict[str, Any]]:
        return {task.name: task.published for task in self.tasks if task.published is not None}

    @property
    def num_frames(self) -> int | None:
        """Frames of each video, if all tasks had as many."""
        numbers = {task.num_frames for task in self.tasks if task.num_frames is not None}
        return numbers.pop() if len(numbers) == 1 else None

    def notices(self) -> list[str]:
        """What a reader has to know before the numbers; the grave ones begin with a word in capitals."""
        run = self.run
        found = [f"FAILED: {name}: {reason}" for name, reason in self.failed.items()]
        if self.incomplete:
            found.append(
                f"INCOMPLETE: {len(run.unreadable)} videos could not be read; their questions count as wrong. They are "
                "listed under “What was incomplete”. The same command asks about them again."
            )
        found += [f"NO CATEGORIES: {task.name}: {task.remark}" for task in self.tasks if task.remark]
        if run.source == "miniature":
            found.append("MINIATURE: a handful of made-up questions about noise; the scores mean nothing.")
        if run.limit is not None:
            found.append(f"LIMITED: limit={run.limit}, not all questions; not comparable with the published numbers.")
        other = [
            f"{task.name} {task.num_frames} (published: {task.published['num_frames']})"
            for task in self.tasks
            if task.published is not None and task.num_frames not in (None, task.published["num_frames"])
        ]
        if other:
            found.append(f"OTHER FRAMES: not as many of each video as for the published number: {', '.join(other)}.")
        if run.short:
            became = "some frames repeat" if run.short_videos == "repeat" else "they count as unreadable"
            found.append(f"{len(run.short)} videos have fewer frames than were asked for; {became}.")
        if resumed := run.throughput["resumed"]:
            found.append(f"{resumed} answers were found by an earlier run and taken from its journal.")
        return found

    def overview(self) -> plots.Plot | None:
        """Everything that has a number, with the metric that was published where one was."""
        rows = []
        for task in self.tasks:
            chance = None if task.score is None else 100 * task.score.chance
            if (entry := task.published) is not None:
                found = (entry["found"], entry["low"], entry["high"])
                rows.append(plots.Row(task.name, *found, entry["published"], chance))
            elif (score := task.score) is not None:
                found = (100 * score.accuracy, 100 * score.low, 100 * score.high)
                rows.append(plots.Row(task.name, *found, None, chance))
        return plots.overview(rows) if rows else None

    def summary(self) -> dict[str, Any]:
        """What goes to ``summary.json``: all numbers, none of the answers."""
        run = self.run
        return {
            "checkpoint": run.checkpoint,
            "fingerprint": run.fingerprint,
            "benchmark": run.benchmark,
            "source": run.source,
            "limit": run.limit,
            "published": self.published,
            "tasks": {s.task: {key: value for key, value in asdict(s).items() if key != "task"} for s in self.scores},
            "num_frames": self.num_frames,
            "frames": {task.name: task.num_frames for task in self.tasks},
            "measures": {
                task.name: {m.metric: {k: v for k, v in asdict(m).items() if k != "metric"} for m in task.measures}
                for task in self.tasks
            },
            "categories": {
                task.name: {
                    column: {s.task: {"accuracy": s.accuracy, "low": s.low, "high": s.high, "n": s.n} for s in scores}
                    for column, scores in task.breakdown.items()
                }
                for task in self.tasks
                if task.breakdown
            },
            "complete": not self.incomplete,
            "failed_tasks": self.failed,
            "resumed_answers": run.throughput["resumed"],
            "unreadable_videos": run.unreadable,
            "short_videos": {"handled": run.short_videos, "repeated": len(run.short)},
            "throughput": run.throughput,
            "command": run.command,
            "changes": [dict(zip(("key", "default", "value"), change)) for change in run.changes],
            "device": run.device,
            "versions": run.versions,
        }
