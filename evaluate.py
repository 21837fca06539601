"""Scores a checkpoint with the lmms-eval harness: ``python evaluate.py checkpoint=... benchmark=needle``.

Differs from the ``lmms-eval`` command in three ways: the harness exits 0 when an evaluation failed, this does not; it
writes a report; and it finds the data of a benchmark by the files of ``conf/benchmark``.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import OmegaConf

from bimba.overrides import check_command_line
from bimba.places import default_root
from bimba.types import BimbaError, is_count, is_number, memory_error

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from omegaconf import DictConfig

    from bimba.report.evaluation import Evaluation
    from bimba.report.facts import Change
    from lmms_eval_plugin.models.bimba import Bimba
    from lmms_eval_plugin.ranks import Seen

log = logging.getLogger(__name__)

KEYS = {
    "benchmark", "paths", "checkpoint", "base", "frames", "num_frames", "temporal_pooling", "short_videos", "limit",
    "batch_size", "device", "dtype", "video_backend", "decode_deadline_s", "token_cache", "answers", "batch_questions",
    "logger", "output_dir",
}  # fmt: skip
SOURCES = ("hf_home", "miniature")
ANSWERS = ("generate", "choose")
GOES_ON = "Answers are kept: the same command with output_dir={} goes on from them."
FOLDERS = ("HF_HOME", "BIMBA_VNBENCH_ROOT", "BIMBA_NEEDLE_ROOT")  # variables that conf/benchmark reads


def check(config: DictConfig) -> None:
    """Raises ``BimbaError`` for what would otherwise be found out after the answers."""
    if unknown := sorted(set(map(str, config)) - KEYS):
        raise BimbaError(f"Nobody reads {', '.join(unknown)}; expected only {', '.join(sorted(KEYS))}.")
    source = config.benchmark.get("source", SOURCES[0])
    if source not in SOURCES:
        raise BimbaError(f"benchmark.source is {source!r}; expected one of {', '.join(SOURCES)}.")
    value = config.decode_deadline_s
    if value is not None and not (is_number(value) and value >= 0):
        raise BimbaError(f"decode_deadline_s is {value!r}; expected a number of at least 0, or null.")
    value = config.limit
    if value is not None and not (is_number(value) and value > 0):  # without a question the harness stops with a trace
        raise BimbaError(
            f"limit is {value!r}; expected a number above 0 (below 1 it is a share of the questions), or null for all."
        )
    for key in ("num_frames", "temporal_pooling"):
        value = config[key]
        if value is not None and not is_count(value):
            raise BimbaError(f"{key} is {value!r}; expected a whole number of at least 1, or null.")
    if config.answers not in ANSWERS:
        raise BimbaError(f"answers is {config.answers!r}; expected one of {', '.join(ANSWERS)}.")


def benchmark_rows(config: DictConfig) -> list[DictConfig]:
    """What is evaluated: the chosen file of ``conf/benchmark``, or those that it gathers under ``rows``.

    With ``answers=choose`` these are the tasks ``<task>_choose``.
    """
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
    """Sets the variables that say where the data is; if it is to be a miniature, the first process writes it.

    Raises:
        BimbaError: data that is neither there nor to be had.
    """
    if config.benchmark.get("source") == "miniature":
        from lmms_eval_plugin.miniature import write_home
        from lmms_eval_plugin.ranks import first_does

        home = (folder / "miniature").absolute()
        os.environ.update(HF_HOME=str(home), BIMBA_VNBENCH_ROOT=str(home / "vnbench"), HF_HUB_OFFLINE="1")
        if first_does(lambda: write_home(home)):
            log.warning("These are miniatures of the benchmarks, written to %s; the scores mean nothing", home)
    else:
        from lmms_eval_plugin.prepare.preflight import check_data

        rows = benchmark_rows(config)
        os.environ.update({name: str(value) for row in rows for name, value in row.environment.items()})
        check_data(task for row in rows for task in row.tasks)


def examine_run(
    config: DictConfig, changes: list[Change], model: Bimba, results: dict[str, Any], seen: list[Seen]
) -> Evaluation:
    """What was found, and how."""
    from bimba.report.evaluation import Run
    from bimba.report.examine import examine
    from bimba.report.facts import command, device_name, throughput, versions
    from lmms_eval_plugin.ranks import all_asked

    run = Run(
        checkpoint=config.checkpoint,
        fingerprint=model.fingerprint,
        benchmark=config.benchmark.name,
        source=config.benchmark.get("source"),
        limit=config.limit,
        command=command(),
        changes=changes,
        versions=versions(),
        device=device_name(str(model.device)),
        throughput=throughput([one.work for one in seen], sum(one.resumed for one in seen)),
        unreadable={video: error for one in seen for video, error in one.work["unreadable"].items()},
        short=sorted({video for one in seen for video in one.work["short"]}),
        short_videos=config.short_videos,
        asked=all_asked(seen),
    )
    return examine(results, benchmark_rows(config), run)


def evaluate(config: DictConfig, changes: list[Change]) -> None:
    """Runs benchmarks, prints their table, and writes ``results.json``, ``summary.json``, ``samples/`` and a report.

    Each answer is kept in ``journal/`` as soon as it is there: the same command with the same ``output_dir`` goes on
    where a killed one was. Of several processes the first one writes, for all.

    Raises:
        BimbaError: a task has no result. What the others found is written all the same. Or another evaluation holds
            the folder.
    """
    from bimba.report.files import hold
    from bimba.versions import check_versions
    from lmms_eval_plugin import ranks

    check_versions("lmms-eval", "filelock")
    ranks.join(config.device)
    config.output_dir = ranks.as_first_says(str(config.output_dir))  # the clock in it may have gone on meanwhile
    folder = Path(config.output_dir)
    with ExitStack() as held:
        ranks.first_does(lambda: held.enter_context(hold(folder)))
        provide_data(config, folder)  # before the first import that reads HF_HOME
        from bimba.report.tracking import make_loggers

        loggers = ranks.first_does(lambda: make_loggers(config.get("logger")))  # before hours of answers
        evaluation = answer(config, changes, folder, loggers or [])
    if evaluation is not None and evaluation.failed:
        raise BimbaError(f"{', '.join(evaluation.failed)} failed; {folder / 'report.md'} says why.")


def answer(config: DictConfig, changes: list[Change], folder: Path, loggers: list[Logger]) -> Evaluation | None:
    """Loads the model, runs the harness, and writes what was found; None on all processes but the first."""
    from lmms_eval.utils import handle_non_serializable

    from bimba.report.files import results_in
    from bimba.report.output import write_answers, write_evaluation
    from bimba.report.readings import answer_readings
    from bimba.report.tracking import log_evaluation
    from lmms_eval_plugin import ranks
    from lmms_eval_plugin.harness import run_harness
    from lmms_eval_plugin.models.bimba import Bimba

    model = Bimba(
        pretrained=config.checkpoint,
        device=config.device,
        dtype=config.dtype,
        video_backend=config.video_backend,
        decode_deadline_s=config.decode_deadline_s,
        num_frames=config.num_frames,
        temporal_pooling=config.temporal_pooling,
        base=config.base,
        short_videos=config.short_videos,
        batch_questions=config.batch_questions,
        batch_size=config.batch_size,
        token_cache=config.token_cache,
        journal=str(folder / "journal"),
    )
    tasks = [task for row in benchmark_rows(config) for task in row.tasks]
    results = run_harness(model, tasks, config.checkpoint, folder, config.batch_size, config.limit)
    seen = ranks.gather(model)
    if results is None or seen is None:
        return None
    write_answers(folder, results, handle_non_serializable)
    evaluation = examine_run(config, changes, model, results, seen)
    pooled = {"temporal_pooling": model.reduction[0], "reduction": list(model.reduction)}
    more = {**pooled, "answers": config.answers}
    write_evaluation(folder, evaluation, **more, readings=answer_readings(results))
    with results_in(folder):
        log_evaluation(loggers, evaluation)
    for notice in evaluation.notices():
        log.warning(notice)
    log.info("The report is %s", folder / "report.html")
    return evaluation


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> None:
    from bimba.report.facts import changed_settings

    logging.raiseExceptions = False  # on a full disk each line for evaluate.log would be a trace, and the run goes on
    try:
        check(config)
        for name in FOLDERS:
            if not os.environ.get(name):  # set to nothing is not set, and not the current folder
                os.environ.pop(name, None)
        changes = changed_settings(config)
        OmegaConf.resolve(config)
        evaluate(config, changes)
    except BimbaError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"interrupted. {GOES_ON.format(config.output_dir)}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (RuntimeError, MemoryError) as error:
        less = f"Give fewer num_frames=, dtype=bfloat16, or a larger temporal_pooling=. {GOES_ON}"
        if (short := memory_error(error, less.format(config.output_dir))) is None:
            raise
        sys.exit(f"error: {short}")


if __name__ == "__main__":
    here = str(Path(__file__).resolve().parent)
    os.environ.setdefault("BIMBA_ROOT", str(default_root()))  # conf/paths reads it
    # The harness imports Hugging Face's `evaluate`; with this folder first in line it would get this file instead.
    sys.path.sort(key=lambda entry: entry == here)
    check_command_line(Path(here) / "conf", "evaluate", sys.argv[1:])
    main()
