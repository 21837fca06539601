"""LongVideoBench: stock data, videos and scoring, the published prompt."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from lmms_eval_plugin.tasks.documents import checked
from lmms_eval_plugin.tasks.published import Asked, letter_at, lettered, scores, stock_utils

stock = stock_utils("longvideobench")
doc_to_visual = stock.longvideobench_doc_to_visual_v
aggregate = stock.longvideobench_aggregate_results
NUM_COLUMNS = 5
NO_OPTION = "N/A"  # fills the columns of questions with fewer than five options


def asked(doc: dict[str, Any]) -> Asked:
    columns = [doc[f"option{i}"] for i in range(NUM_COLUMNS)]
    lines = lettered([option for option in columns if option != NO_OPTION])
    return Asked(doc["question"], lines, letter_at(doc["correct_choice"]), identity=doc["id"])


def doc_to_text(doc: dict[str, Any]) -> str:
    return asked(doc).prompt


def doc_to_choice(doc: dict[str, Any]) -> list[str]:
    return asked(doc).letters


def number_as_text(doc: dict[str, Any]) -> str:
    """With ``doc_to_choice`` the harness looks up the right answer's number, and stops at one that no option has."""
    return str(doc["correct_choice"])


def process_docs(documents: Dataset) -> Dataset:
    return checked("bimba_longvideobench_val_v", documents, asked)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The harness's other entry, a submission, is for the test set."""
    found = scores(doc, results, asked(doc), stock.longvideobench_process_results)
    return {key: value for key, value in found.items() if key != "submission"} | {"chance": 1 / len(asked(doc).lines)}
