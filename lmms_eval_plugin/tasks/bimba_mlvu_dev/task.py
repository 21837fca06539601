"""MLVU: stock data, videos and scoring, the published prompt. The published number is the mean over the task types."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from lmms_eval_plugin.tasks.documents import checked
from lmms_eval_plugin.tasks.published import Asked, lettered, scores, stock_utils

stock = stock_utils("mlvu")
doc_to_visual = stock.mlvu_doc_to_visual_dev
aggregate = stock.mlvu_aggregate_results_dev
OPTIONS_BEGIN = "\n(A)"  # the column `question` repeats the options in this style


def asked(doc: dict[str, Any]) -> Asked:
    question = doc["question"].split(OPTIONS_BEGIN)[0]
    return Asked(question, lettered(doc["candidates"]), doc["answer"] or "", (doc["video_name"], doc["question"]))


def doc_to_text(doc: dict[str, Any]) -> str:
    return asked(doc).prompt


def doc_to_choice(doc: dict[str, Any]) -> list[str]:
    return asked(doc).letters


def process_docs(documents: Dataset) -> Dataset:
    return checked("bimba_mlvu_dev", documents, asked)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    found = scores(doc, results, asked(doc), stock.mlvu_process_results)
    return {
        **found,
        "strict_macro": {"task_type": doc["task_type"], "score": found["strict_accuracy"]},
        "lenient_macro": {"task_type": doc["task_type"], "score": found["lenient_accuracy"]},
    }


def aggregate_macro(results: list[dict[str, Any]]) -> float:
    """Mean over task types of the accuracy in each, of the types that were asked (with ``--limit`` not all are)."""
    by_type: dict[str, list[float]] = {}
    for result in results:
        by_type.setdefault(result["task_type"], []).append(result["score"])
    return sum(sum(scores) / len(scores) for scores in by_type.values()) / len(by_type)
