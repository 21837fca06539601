"""Run folders as train.py, its launcher and evaluate.py leave them, without training anything."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from harness import make_run

from bimba.report.examine import examine
from bimba.report.facts import throughput
from bimba.report.files import write_json
from bimba.report.output import write_answers

CODE = {
    "bimba": "0.1.0",
    "git": {"commit": "a" * 40, "dirty": False},
    "packages": {"torch": "2.14"},
    "devices": ["cpu"],
}


def write_run(
    folder: Path,
    compressor: str = "mamba",
    seed: int = 1,
    evaluations: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    settings: Mapping[str, Any] | None = None,
    losses: Sequence[float] = (4.0, 2.0, 1.0),
    num_frames: int = 32,
    lengths: Sequence[int] = (4, 8),
    trained_with: int = 32,
    **record: Any,
) -> Path:
    """A finished run.

    Args:
        evaluations: name -> task -> how right each question was answered; question i has a needle of
            ``lengths[i % len(lengths)]`` frames.
        settings: of the compressor.
        num_frames: of the evaluations, but for those that say so: ``frames_16``.
        trained_with: frames of a video, in training.
        record: values of run.json, in place of those here.
    """
    config = {
        "seed": seed,
        "model": {"compressor": {"name": compressor, **(settings or {})}, "config": {"num_frames": trained_with}},
        "data": {"num_frames": "${model.config.num_frames}"},
        "paths": {"run_dir": "${hydra:runtime.output_dir}"},
    }
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    said = {
        "status": "finished",
        "code_version": CODE,
        "started": "2026-11-24T12:00:00",
        "train_seconds": 100.0 + seed,
        "evaluation_seconds": {name: 10.0 for name in evaluations or {}},
        "peak_memory_mib": 900.0,
        "gpu_peak_memory_mib": None,
        "tokens_per_second": 5000.0,
        "parameters": {"compressor": 1000, "trained": 2000},
        "compression": {"frames": 32, "patch_tokens": 2048, "visual_tokens": 128},
        "error": None,
    }
    (folder / "run.json").write_text(json.dumps({**said, **record}))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", "val/accuracy"])
        writer.writeheader()
        writer.writerows({"step": i, "train/loss": loss} for i, loss in enumerate(losses))
        writer.writerow({"step": len(losses) - 1, "val/accuracy": 0.5})
    for name, tasks in (evaluations or {}).items():
        frames = int(name.rpartition("_")[2]) if name.startswith("frames_") else num_frames
        write_evaluation(folder / "evaluation" / name, tasks, frames, lengths)
    return folder


def write_evaluation(
    folder: Path, tasks: Mapping[str, Sequence[float]], num_frames: int = 32, lengths: Sequence[int] = (4, 8)
) -> Path:
    """``samples/`` and ``summary.json`` of an evaluation, made by the code that makes them of a real one."""
    samples = {task: [_sample(task, i, right, lengths) for i, right in enumerate(of)] for task, of in tasks.items()}
    results = {
        "results": {task: {"accuracy,none": sum(of) / len(of)} for task, of in tasks.items()},
        "samples": samples,
        "group_subtasks": {task: [] for task in tasks},
    }
    row = {"tasks": list(tasks), "metric": "accuracy", "chance": 0.25, "categories": [], "published": {}}
    work = dict.fromkeys(("stored", "cached", "wait_s", "answer_s"), 0)
    run = make_run(
        asked={task: {i: ("v.mp4", "?", num_frames) for i in range(len(of))} for task, of in tasks.items()},
        throughput=throughput([{**work, "decoded": 10, "answered": 10, "encode_s": 0.5}], 0),
    )
    write_answers(folder, results, str)
    write_json(folder / "summary.json", examine(results, [row], run).summary())
    return folder


def _sample(task: str, number: int, right: float, lengths: Sequence[int]) -> dict[str, Any]:
    document = {
        "id": f"needle_test_{number:06d}",
        "question": "Which digit appears in the video?",
        "video": f"/some/where/test/videos/{task}-{number}.mp4",
        "num_needles": 1,
        "needle_frames": lengths[number % len(lengths)],
    }
    return {"doc_id": number, "doc": document, "target": "A", "filtered_resps": ["A"], "accuracy": float(right)}
