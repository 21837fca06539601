"""How the answers of a harness run could be read: both readings, and what neither could."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STRICT = ("strict_accuracy", "vnbench_per_try")  # a task has the first or the second
LENIENT = ("lenient_accuracy", "vnbench_per_try_lenient")
COUNTS = ("no_letter", "outside_options", "no_reference")


def answer_readings(results: Mapping[str, Any]) -> dict[str, dict[str, float | int]]:
    """Of each task that counts unread answers: its accuracies as fractions of 1, and its counts.

    Args:
        results: what ``lmms_eval.evaluator.simple_evaluate`` returned.

    Returns:
        task -> those of ``strict_accuracy``, ``lenient_accuracy``, ``no_letter``, ``outside_options`` and
        ``no_reference`` that the task has.
    """
    readings: dict[str, dict[str, float | int]] = {}
    for task, metrics in results["results"].items():
        if f"{COUNTS[0]},none" in metrics:
            names = [(STRICT[0], STRICT), (LENIENT[0], LENIENT), *((count, (count,)) for count in COUNTS)]
            readings[task] = {
                name: metrics[f"{metric},none"] for name, of in names for metric in of if f"{metric},none" in metrics
            }
    return readings
