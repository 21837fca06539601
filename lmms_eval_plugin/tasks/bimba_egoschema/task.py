"""EgoSchema: stock data and videos, the published prompt; the full set becomes a file and nothing is sent anywhere.

The harness's own ``egoschema`` posts the answers to a server and loses every metric of the run when it is down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmms_eval.tasks._task_utils.file_utils import generate_submission_file
from loguru import logger

from bimba.data.prompt import LETTERS, multiple_choice_lines
from lmms_eval_plugin.tasks.bimba_egoschema.submission import NO_ANSWER, answer_index, write_submission
from lmms_eval_plugin.tasks.published import stock_utils, strict

stock = stock_utils("egoschema")
doc_to_visual = stock.egoschema_doc_to_visual
aggregate_score = stock.egoschema_aggregate_score


def doc_to_text(doc: dict[str, Any]) -> str:
    """Options come as "A. ..."."""
    return multiple_choice_lines(doc["question"], doc["option"])


def process_subset(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Answers of the subset are "0" to "4"."""
    lenient = stock.egoschema_process_results_generation(doc, results)["score"]
    return {"strict_accuracy": strict(results[0], LETTERS[int(doc["answer"])]), "score": lenient}


def process_full(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    index = answer_index(results[0])
    return {"answered": float(index != NO_ANSWER), "submission": {doc["video_idx"]: index}}


def aggregate_submission(results: list[dict[str, int]], args: Any) -> int:
    """Writes ``submissions/bimba_egoschema.csv`` and ``.json`` under the output path; returns the number of answers."""
    predictions = {uid: index for result in results for uid, index in result.items()}
    path = Path(generate_submission_file("bimba_egoschema.csv", args))
    write_submission(path, predictions)
    logger.info(f"EgoSchema: {len(predictions)} answers are in {path}; upload it to Kaggle yourself. Nothing was sent.")
    return len(predictions)
