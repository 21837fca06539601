"""PerceptionTest: stock data, videos and scoring, the published prompt."""

from __future__ import annotations

from typing import Any

from bimba.data.prompt import LETTERS, multiple_choice
from lmms_eval_plugin.tasks.published import stock_utils, strict

stock = stock_utils("perceptiontest.val")
doc_to_visual = stock.perceptiontest_val_doc_to_visual
aggregate = stock.perceptiontest_val_aggregate_accuracy


def doc_to_text(doc: dict[str, Any]) -> str:
    return multiple_choice(doc["question"], doc["options"])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    return {
        "strict_accuracy": strict(results[0], LETTERS[int(doc["answer_id"])]),
        **stock.perceptiontest_val_process_results_mc(doc, results),
    }
