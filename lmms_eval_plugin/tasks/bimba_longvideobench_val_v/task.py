"""LongVideoBench: stock data, videos and scoring, the published prompt."""

from __future__ import annotations

from typing import Any

from bimba.data.prompt import LETTERS, multiple_choice
from lmms_eval_plugin.tasks.published import stock_utils, strict

stock = stock_utils("longvideobench")
doc_to_visual = stock.longvideobench_doc_to_visual_v
aggregate = stock.longvideobench_aggregate_results
NO_OPTION = "N/A"  # fills the columns of questions with fewer than five options


def doc_to_text(doc: dict[str, Any]) -> str:
    return multiple_choice(doc["question"], _options(doc))


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    return {
        "strict_accuracy": strict(results[0], LETTERS[doc["correct_choice"]]),
        "chance": 1 / len(_options(doc)),
        "lvb_acc": stock.longvideobench_process_results(doc, results)["lvb_acc"],
    }


def _options(doc: dict[str, Any]) -> list[str]:
    columns = [doc[f"option{i}"] for i in range(len(LETTERS))]
    return [option for option in columns if option != NO_OPTION]
