"""NExT-QA: stock data, videos and scoring, the published prompt."""

from __future__ import annotations

from typing import Any

from bimba.data.prompt import LETTERS, multiple_choice
from lmms_eval_plugin.tasks.published import stock_utils, strict

stock = stock_utils("nextqa")
doc_to_visual = stock.nextqa_doc_to_visual
doc_to_target = stock.nextqa_doc_to_target


def doc_to_text(doc: dict[str, Any]) -> str:
    return multiple_choice(doc["question"], [doc[f"a{i}"] for i in range(len(LETTERS))])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    return {
        "strict_accuracy": strict(results[0], LETTERS[doc["answer"]]),
        **stock.nextqa_mc_process_results(doc, results),
    }
