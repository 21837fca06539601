"""Results as the harness returns them, without running it."""

from __future__ import annotations

from typing import Any

from bimba.report.evaluation import Evaluation, Run
from bimba.report.examine import examine
from bimba.report.facts import throughput

ROW: dict[str, Any] = {
    "tasks": ["quiz"],
    "metric": "strict_accuracy",
    "chance": 0.25,
    "categories": ["kind", "tags"],
    "published": {"quiz": {"score": 64.67, "metric": "strict_accuracy", "num_frames": 64}},
}


def sample(number: int, right: float, kind: str = "short", answer: str = "A", **metrics: Any) -> dict[str, Any]:
    return {
        "doc_id": number,
        "doc": {"kind": kind, "tags": [kind, "all"]},
        "target": "A",
        "filtered_resps": [answer],
        "strict_accuracy": right,
        **metrics,
    }


def harness_results(samples: list[dict[str, Any]], **metrics: float) -> dict[str, Any]:
    right = [one["strict_accuracy"] for one in samples]
    found = {"alias": "quiz", "strict_accuracy,none": sum(right) / len(right), "strict_accuracy_stderr,none": "N/A"}
    return {
        "results": {"quiz": {**found, **{f"{name},none": value for name, value in metrics.items()}}},
        "samples": {"quiz": samples},
        "group_subtasks": {"quiz": []},
    }


def work(**values: Any) -> dict[str, Any]:
    nothing = {
        **dict.fromkeys(("decoded", "stored", "cached", "answered"), 0),
        **dict.fromkeys(("wait_s", "encode_s", "answer_s"), 0.0),
    }
    return {**nothing, **values}


def make_run(video: str = "/nowhere/film.mp4", prompt: str = "Which?\nA. one\nB. two\nAnswer:", **values: Any) -> Run:
    settings: dict[str, Any] = {
        "checkpoint": "bimba-tiny",
        "fingerprint": "0123456789abcdef",
        "benchmark": "quiz",
        "source": None,
        "limit": None,
        "command": "python evaluate.py benchmark=quiz",
        "changes": [("benchmark", "needle", "quiz")],
        "versions": {"python": "3.11"},
        "device": "cpu",
        "throughput": throughput([work(decoded=2, answered=4, encode_s=1.0, answer_s=2.0, wait_s=1.0)], 0),
        "unreadable": {},
        "short": [],
        "short_videos": "repeat",
        "asked": {"quiz": {number: (video, prompt, 4) for number in range(9)}},
    }
    return Run(**{**settings, **values})


def make_evaluation(samples: list[dict[str, Any]] | None = None, **values: Any) -> Evaluation:
    samples = [sample(i, float(i % 2), "short" if i < 4 else "long") for i in range(8)] if samples is None else samples
    return examine(harness_results(samples), [ROW], make_run(**values))
