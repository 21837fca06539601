"""EgoSchema: stock data and videos, the published prompt; the full set becomes a file and nothing is sent anywhere.

The harness's own ``egoschema`` posts the answers to a server and loses every metric of the run when it is down.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from lmms_eval.tasks._task_utils.file_utils import generate_submission_file
from loguru import logger

from lmms_eval_plugin.tasks.bimba_egoschema.submission import NO_ANSWER, answer_index, write_submission
from lmms_eval_plugin.tasks.documents import checked
from lmms_eval_plugin.tasks.published import Asked, letter_at, readings, scores, stock_utils

stock = stock_utils("egoschema")
doc_to_visual = stock.egoschema_doc_to_visual
aggregate_score = stock.egoschema_aggregate_score


def asked(doc: dict[str, Any]) -> Asked:
    """Options come as "A. ...", answers of the subset as "0" to "4"; those of the full set only Kaggle knows."""
    return Asked(doc["question"], doc["option"], letter_at(doc["answer"]), identity=doc["video_idx"])


def doc_to_text(doc: dict[str, Any]) -> str:
    return asked(doc).prompt


def doc_to_choice(doc: dict[str, Any]) -> list[str]:
    return asked(doc).letters


def process_subset_docs(documents: Dataset) -> Dataset:
    return checked("bimba_egoschema_subset", documents, asked)


def process_full_docs(documents: Dataset) -> Dataset:
    """Kaggle wants one answer about each video."""
    return checked("bimba_egoschema", documents, lambda doc: replace(asked(doc), right=None), each_once=True)


def process_subset(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The harness's other entry is for its server."""
    found = scores(doc, results, asked(doc), stock.egoschema_process_results_generation)
    return {key: value for key, value in found.items() if key != "submission"}


def process_full(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    index, read = answer_index(results[0]), readings(results[0], asked(doc))
    return {
        "answered": float(index != NO_ANSWER),
        "no_letter": read["no_letter"],
        "outside_options": read["outside_options"],
        "submission": {doc["video_idx"]: index},
    }


def aggregate_submission(results: list[dict[str, int]], args: Any) -> int:
    """Writes ``submissions/bimba_egoschema.csv`` and ``.json`` under the output path; returns the number of answers."""
    return _write(results, args, "bimba_egoschema.csv")


def aggregate_chosen(results: list[dict[str, int]], args: Any) -> int:
    """The same for answers that were chosen, ``bimba_egoschema_choose.csv``."""
    return _write(results, args, "bimba_egoschema_choose.csv")


def _write(results: list[dict[str, int]], args: Any, name: str) -> int:
    predictions = {uid: index for result in results for uid, index in result.items()}
    path = Path(generate_submission_file(name, args))
    write_submission(path, predictions)
    logger.info(f"EgoSchema: {len(predictions)} answers are in {path}; upload it to Kaggle yourself. Nothing was sent.")
    return len(predictions)
