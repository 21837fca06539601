"""PerceptionTest: stock data, videos and scoring, the published prompt."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from lmms_eval_plugin.tasks.documents import checked
from lmms_eval_plugin.tasks.published import Asked, letter_at, lettered, scores, stock_utils

stock = stock_utils("perceptiontest.val")
doc_to_visual = stock.perceptiontest_val_doc_to_visual
aggregate = stock.perceptiontest_val_aggregate_accuracy


def asked(doc: dict[str, Any]) -> Asked:
    question, lines = doc["question"], lettered(doc["options"])
    return Asked(question, lines, letter_at(doc["answer_id"]), identity=(doc["video_name"], question, *lines))


def doc_to_text(doc: dict[str, Any]) -> str:
    return asked(doc).prompt


def doc_to_choice(doc: dict[str, Any]) -> list[str]:
    return asked(doc).letters


def process_docs(documents: Dataset) -> Dataset:
    return checked("bimba_perceptiontest_val_mc", documents, asked)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    return scores(doc, results, asked(doc), stock.perceptiontest_val_process_results_mc)
