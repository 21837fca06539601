"""Video-MME: stock data, videos and scoring, the published prompt."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from lmms_eval_plugin.tasks.documents import checked
from lmms_eval_plugin.tasks.published import Asked, scores, stock_utils

stock = stock_utils("videomme")
doc_to_visual = stock.videomme_doc_to_visual
aggregate = stock.videomme_aggregate_results


def asked(doc: dict[str, Any]) -> Asked:
    """Options come as "A. ..."."""
    return Asked(doc["question"], doc["options"], doc["answer"] or "", identity=doc["question_id"])


def doc_to_text(doc: dict[str, Any]) -> str:
    return asked(doc).prompt


def doc_to_choice(doc: dict[str, Any]) -> list[str]:
    return asked(doc).letters


def process_docs(documents: Dataset) -> Dataset:
    return checked("bimba_videomme", documents, asked)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    return scores(doc, results, asked(doc), stock.videomme_process_results)
