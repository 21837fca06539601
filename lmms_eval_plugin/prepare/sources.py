"""What each benchmark's data is: the repository on the hub, which file belongs to a question, who is to be asked.

Where the harness takes the table from and unpacks the videos to is read from the task's own YAML, so that it is said in
one place. Nothing heavy is imported here: the command's help and the errors of an evaluation read this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
TASKS_FOLDER = Path(__file__).resolve().parents[1] / "tasks"


@dataclass(frozen=True)
class Subtitles:
    """Text that some variants of a benchmark's task put into the question.

    Attributes:
        tasks: the harness's tasks that read it; none of ours does.
        path: of a row's subtitles, below the benchmark's folder.
        of_every_video: False if not every video has some.
    """

    tasks: Sequence[str]
    path: Callable[[Row], str]
    of_every_video: bool


@dataclass(frozen=True)
class Source:
    """One benchmark.

    Attributes:
        name: as ``benchmark=`` of evaluate.py and ``bimba prepare`` call it.
        task: the task that reads it.
        video: path of a row's video below the benchmark's folder, where it is put; the check itself asks the task.
        suffixes: names that a video may end with; the task finds it with any of them.
        gated: the owners of the data set want to be asked first.
        subtitles: if variants of the task read them.
        size: of the whole repository, where it is known beforehand.
    """

    name: str
    task: str
    video: Callable[[Row], str]
    suffixes: Sequence[str] = (".mp4", ".MP4")
    gated: bool = False
    subtitles: Subtitles | None = None
    size: str = "a size that only the hub knows"

    @property
    def folder_of_task(self) -> Path:
        """Where the task's YAML and its ``task.py`` are."""
        (path,) = TASKS_FOLDER.glob(f"*/{self.task}.yaml")
        return path.parent


@dataclass(frozen=True)
class Table:
    """What the harness does with a data set of the hub, from the task's YAML.

    Attributes:
        repository, config, split: the questions. ``config`` is None for the only one.
        folder: where the videos are unpacked, below HF_HOME.
    """

    repository: str
    config: str | None
    split: str
    folder: str


def _videomme_subtitle(row: Row) -> str:
    return f"subtitle/{row['videoID']}.srt"


def _longvideobench_subtitle(row: Row) -> str:
    return f"subtitles/{row['subtitle_path']}"


SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        Source("egoschema", "bimba_egoschema", lambda row: f"videos/{row['video_idx']}.mp4", size="106 GB of archives"),
        Source("egoschema_subset", "bimba_egoschema_subset", lambda row: f"videos/{row['video_idx']}.mp4"),
        Source("vnbench", "vnbench", lambda row: row["video"]),
        Source(
            "videomme",
            "bimba_videomme",
            lambda row: f"data/{row['videoID']}.mp4",
            suffixes=(".mp4", ".MP4", ".mkv"),
            subtitles=Subtitles(("videomme_w_subtitle", "videomme_long_w_subtitle"), _videomme_subtitle, False),
        ),
        Source("mlvu", "bimba_mlvu_dev", lambda row: row["video_name"], suffixes=()),
        Source(
            "longvideobench",
            "bimba_longvideobench_val_v",
            lambda row: f"videos/{row['video_path']}",
            suffixes=(),
            gated=True,
            subtitles=Subtitles(("longvideobench_val_i",), _longvideobench_subtitle, True),
            size="161 GB of archives",
        ),
        Source("nextqa", "bimba_nextqa_mc_test", lambda row: f"NExTVideo/{row['video']}.mp4"),
        Source(
            "perceptiontest",
            "bimba_perceptiontest_val_mc",
            lambda row: f"videos/{row['video_name']}.mp4",
            size="111 GB of archives, 35.5 GB of them sound that is left out",
        ),
    )
}
ALL = tuple(name for name in SOURCES if name != "egoschema_subset")  # which is part of egoschema


@cache
def table_of(source: Source) -> Table | None:
    """None for a benchmark that the harness does not fetch from the hub."""
    import yaml

    class Plain(yaml.SafeLoader):  # a safe loader that leaves functions alone
        pass

    Plain.add_constructor("!function", lambda loader, node: node.value)
    config: dict[str, Any] = {}
    path: Path | None = source.folder_of_task / f"{source.task}.yaml"
    while path is not None:
        content = yaml.load(path.read_text(encoding="utf-8"), Plain)
        config = {**content, **config}
        path = path.parent / content["include"] if "include" in content else None
    if "dataset_path" not in config:
        return None
    return Table(
        repository=config["dataset_path"],
        config=config.get("dataset_name"),
        split=config["test_split"],
        folder=config["dataset_kwargs"]["cache_dir"],
    )


def sources_of(tasks: Iterable[str]) -> list[Source]:
    """The benchmarks that tasks read, ours or the harness's own of the same names, each once."""
    tasks = {task.removesuffix("_choose") for task in tasks}
    return [
        source
        for source in SOURCES.values()
        if tasks
        & {source.task, source.task.removeprefix("bimba_"), *(source.subtitles.tasks if source.subtitles else ())}
    ]


def hint(tasks: Iterable[str]) -> str:
    """For the end of an error about missing data; empty for tasks whose data ``bimba prepare`` does not know."""
    tasks = list(tasks)
    sources = sources_of(tasks)
    if not sources:
        return ""
    name = sources[0].name if len(sources) == 1 else "all"
    reads_them = any(task in source.subtitles.tasks for source in sources if source.subtitles for task in tasks)
    return f" `bimba prepare {name}{' --subtitles' if reads_them else ''}` says what is missing and what to do."
