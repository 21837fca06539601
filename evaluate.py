"""Scores a checkpoint with the lmms-eval harness: ``python evaluate.py checkpoint=... benchmark=needle``.

Differs from the ``lmms-eval`` command in one way: the harness exits 0 when an evaluation failed, this does not.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import OmegaConf

from bimba.types import BimbaError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lmms_eval_plugin.models.bimba import Bimba

log = logging.getLogger(__name__)

KEYS = {
    "benchmark", "paths", "checkpoint", "base", "num_frames", "temporal_pooling", "short_videos", "limit", "batch_size",
    "device", "dtype", "output_dir", "answers", "batch_questions",
}  # fmt: skip
SOURCES = ("hf_home", "miniature")
ANSWERS = ("generate", "choose")


def benchmark_rows(config: DictConfig) -> list[DictConfig]:
    """What is evaluated: the chosen file of ``conf/benchmark``, or those that it gathers under ``rows``.

    Raises:
        BimbaError: ``answers`` is neither "generate" nor "choose", which stands for the tasks ``<task>_choose``.
    """
    if config.answers not in ANSWERS:
        raise BimbaError(f"answers is {config.answers!r}; expected one of {', '.join(ANSWERS)}.")
    rows = list(config.benchmark.rows.values()) if "rows" in config.benchmark else [config.benchmark]
    if config.answers == "choose":
        return [
            OmegaConf.create(
                {
                    **row,
                    "tasks": [f"{task}_choose" for task in row.tasks],
                    "published": {f"{task}_choose": entry for task, entry in row.published.items()},
                }
            )
            for row in rows
        ]
    return rows


def provide_data(config: DictConfig, folder: Path) -> None:
    """Sets the variables that say where the data is; writes it under ``folder`` if it is to be a miniature.

    Raises:
        BimbaError: an unknown source, or data that is neither there nor to be had.
    """
    source = config.benchmark.get("source", SOURCES[0])
    if source not in SOURCES:
        raise BimbaError(f"benchmark.source is {source!r}; expected one of {', '.join(SOURCES)}.")
    if source == "miniature":
        from lmms_eval_plugin.miniature import write_home

        home = (folder / "miniature").absolute()
        os.environ.update(HF_HOME=str(home), BIMBA_VNBENCH_ROOT=str(home / "vnbench"), HF_HUB_OFFLINE="1")
        write_home(home)
        log.warning("These are miniatures of the benchmarks, written to %s; the scores mean nothing", home)
    else:
        from lmms_eval_plugin.prepare.preflight import check_data

        rows = benchmark_rows(config)
        os.environ.update({name: str(value) for row in rows for name, value in row.environment.items()})
        check_data(task for row in rows for task in row.tasks)


def run_harness(model: Bimba, config: DictConfig) -> dict[str, Any]:
    """The harness's results, with every answer under ``samples``.

    Raises:
        BimbaError: the harness stopped without results.
    """
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager
    from tenacity import RetryError

    from lmms_eval_plugin.prepare.sources import hint

    tasks = [task for row in benchmark_rows(config) for task in row.tasks]
    # Reading the harness's own two thousand task files takes seconds: only if a task is not ours.
    manager = TaskManager(include_defaults=False, model_name="bimba")
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(model_name="bimba")
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise BimbaError(f"The harness has no task {', '.join(unknown)}; `lmms-eval --tasks list` prints all names.")
    try:
        results = simple_evaluate(
            model=model,
            model_args=f"pretrained={config.checkpoint}",
            tasks=tasks,
            batch_size=config.batch_size,
            device=str(model.device),
            limit=config.limit,
            task_manager=manager,
            bootstrap_iters=0,
            # Tasks that write files ask these for the folder; the other one is what the command's own default is.
            cli_args=argparse.Namespace(output_path=str(config.output_dir), process_with_media=False),
        )
    except SystemExit as stop:  # tasks of the harness leave so when a video is missing, some of them with code 0
        raise BimbaError(f"The harness stopped before it had results: {stop.code}.") from stop
    except FileNotFoundError as absent:  # subtitles, for example
        raise BimbaError(f"The harness misses a file: {absent}.{hint(tasks)}") from absent
    except RetryError as error:  # what the harness makes of every error about data, after five tries
        why = error.last_attempt.exception()
        raise BimbaError(f"The harness has no data ({type(why).__name__}: {why}).{hint(tasks)}") from error
    if not results:
        raise BimbaError("The harness returned no results; its log above says why.")
    return results


def evaluate(config: DictConfig) -> None:
    """Runs benchmarks, prints their table, and writes ``results.json``, ``summary.json``, ``samples/`` and a table.

    Each answer is kept in ``journal/`` as soon as it is there: the same command with the same ``output_dir`` goes on
    where a killed one was.
    """
    rows, folder = benchmark_rows(config), Path(config.output_dir)
    provide_data(config, folder)  # before the first import that reads HF_HOME
    from lmms_eval.utils import handle_non_serializable

    from bimba.report.accuracy import compare, harness_scores
    from bimba.report.files import write_json
    from bimba.report.readings import answer_readings
    from bimba.report.table import (
        PUBLISHED_COLUMNS,
        SCORE_COLUMNS,
        markdown_table,
        print_table,
        published_rows,
        score_rows,
        write_markdown,
    )
    from lmms_eval_plugin.models.bimba import Bimba

    model = Bimba(
        pretrained=config.checkpoint,
        device=config.device,
        dtype=config.dtype,
        num_frames=config.num_frames,
        temporal_pooling=config.temporal_pooling,
        base=config.base,
        short_videos=config.short_videos,
        batch_questions=config.batch_questions,
        batch_size=config.batch_size,
        journal=str(folder / "journal"),
    )
    results = run_harness(model, config)
    # A row's tasks may be groups, whose members only the harness knows; rows gathered in one run name single tasks.
    scores = [
        score
        for row in rows
        if row.metric is not None
        for score in harness_scores(results, row.metric, row.chance, row.tasks if len(rows) > 1 else None)
    ]
    published = {
        task: {
            **compare(results, task, **entry),
            "found_num_frames": config.num_frames or results["configs"][task]["generation_kwargs"]["num_frames"],
        }
        for row in rows
        for task, entry in row.published.items()
    }

    for task, samples in results.pop("samples").items():
        write_json(folder / "samples" / f"{task}.json", {"task": task, "samples": samples}, handle_non_serializable)
    write_json(folder / "results.json", results, handle_non_serializable)
    summary = {
        "checkpoint": config.checkpoint,
        "benchmark": config.benchmark.name,
        "source": config.benchmark.get("source"),
        "num_frames": model.num_frames,
        "temporal_pooling": model.temporal_pooling,
        "limit": config.limit,
        "published": published,
        "answers": config.answers,
        "readings": answer_readings(results),
        "tasks": {s.task: {key: value for key, value in asdict(s).items() if key != "task"} for s in scores},
        "complete": not model.incomplete,
        "resumed_answers": model.resumed,
        "unreadable_videos": model.unreadable,
        "short_videos": {"handled": config.short_videos, "repeated": len(model.short)},
    }
    write_json(folder / "summary.json", summary)
    title = f"{config.benchmark.name}: {config.checkpoint}"
    write_markdown(folder / "summary.md", title, SCORE_COLUMNS, score_rows(scores))
    print_table(title, SCORE_COLUMNS, score_rows(scores))
    if published:
        with (folder / "summary.md").open("a", encoding="utf-8") as file:
            file.write("\n" + markdown_table(PUBLISHED_COLUMNS, published_rows(published)))
        print_table("Beside the published numbers", PUBLISHED_COLUMNS, published_rows(published))
    if model.unreadable:
        log.error("%d videos could not be read; their questions count as wrong (summary.json)", len(model.unreadable))
    log.info("Results are in %s", folder)


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> None:
    try:
        if unknown := sorted(set(map(str, config)) - KEYS):
            raise BimbaError(f"Nobody reads {', '.join(unknown)}; expected only {', '.join(sorted(KEYS))}.")
        OmegaConf.resolve(config)
        evaluate(config)
    except BimbaError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    here = str(Path(__file__).resolve().parent)
    os.environ.setdefault("BIMBA_ROOT", here)  # conf/paths reads it
    # The harness imports Hugging Face's `evaluate`; with this folder first in line it would get this file instead.
    sys.path.sort(key=lambda entry: entry == here)
    main()
