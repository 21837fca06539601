"""NExT-QA: stock data, videos and scoring, the published prompt."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from lmms_eval_plugin.tasks.documents import checked
from lmms_eval_plugin.tasks.published import Asked, letter_at, lettered, scores, stock_utils

stock = stock_utils("nextqa")
doc_to_visual = stock.nextqa_doc_to_visual
doc_to_target = stock.nextqa_doc_to_target
NUM_OPTIONS = 5


def asked(doc: dict[str, Any]) -> Asked:
    question, lines = doc["question"], lettered([doc[f"a{i}"] for i in range(NUM_OPTIONS)])
    return Asked(question, lines, letter_at(doc["answer"]), identity=(doc["video"], question, *lines))


def doc_to_text(doc: dict[str, Any]) -> str:
    return asked(doc).prompt


def doc_to_choice(doc: dict[str, Any]) -> list[str]:
    return asked(doc).letters


def number_as_text(doc: dict[str, Any]) -> str:
    """With ``doc_to_choice`` the harness looks up the right answer's number, and stops at one that no option has."""
    return str(doc["answer"])


def process_docs(documents: Dataset) -> Dataset:
    return checked("bimba_nextqa_mc_test", documents, asked)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    return scores(doc, results, asked(doc), stock.nextqa_mc_process_results)
