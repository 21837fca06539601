"""MLVU: stock data, videos and scoring, the published prompt. The published number is the mean over the task types."""

from __future__ import annotations

from typing import Any

from bimba.data.prompt import multiple_choice
from lmms_eval_plugin.tasks.published import stock_utils, strict

stock = stock_utils("mlvu")
doc_to_visual = stock.mlvu_doc_to_visual_dev
aggregate = stock.mlvu_aggregate_results_dev
OPTIONS_BEGIN = "\n(A)"  # the column `question` repeats the options in this style


def doc_to_text(doc: dict[str, Any]) -> str:
    question = doc["question"].split(OPTIONS_BEGIN)[0]
    return multiple_choice(question, doc["candidates"])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    right = strict(results[0], doc["answer"])
    return {
        "strict_accuracy": right,
        "strict_macro": {"task_type": doc["task_type"], "score": right},
        **stock.mlvu_process_results(doc, results),
    }


def aggregate_macro(results: list[dict[str, Any]]) -> float:
    """Mean over task types of the accuracy in each, of the types that were asked (with ``--limit`` not all are)."""
    by_type: dict[str, list[float]] = {}
    for result in results:
        by_type.setdefault(result["task_type"], []).append(result["score"])
    return sum(sum(scores) / len(scores) for scores in by_type.values()) / len(by_type)
