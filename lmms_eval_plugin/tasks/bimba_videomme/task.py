"""Video-MME: stock data, videos and scoring, the published prompt."""

from __future__ import annotations

from typing import Any

from bimba.data.prompt import multiple_choice_lines
from lmms_eval_plugin.tasks.published import stock_utils, strict

stock = stock_utils("videomme")
doc_to_visual = stock.videomme_doc_to_visual
aggregate = stock.videomme_aggregate_results


def doc_to_text(doc: dict[str, Any]) -> str:
    """Options come as "A. ..."."""
    return multiple_choice_lines(doc["question"], doc["options"])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    return {
        "strict_accuracy": strict(results[0], doc["answer"]),
        **stock.videomme_process_results(doc, results),
    }
