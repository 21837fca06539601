"""Several ranks: a video lands on one of them, everything is scored, and nothing depends on how many there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_checkpoint import write_video

from lmms_eval_plugin import deal
from lmms_eval_plugin.deal import Dealer

VIDEOS = {"a": 5, "b": 1, "c": 4, "d": 2, "e": 1}  # questions about each
UNREADABLE = "e"  # the second process has it
LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"),
    "accelerate": (
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "-m",
    ),
}


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_a_video_lands_on_one_rank_and_ranks_have_about_as_much_to_do(world_size):
    videos = [f"{i % 100}.mp4" for i in range(300)]
    dealer = Dealer(world_size)
    ranks = dealer.deal(videos)
    assert len({(video, rank) for video, rank in zip(videos, ranks)}) == 100
    counts = Counter(ranks)
    assert set(counts) == set(range(world_size))
    assert max(counts.values()) - min(counts.values()) <= 3  # one video's questions
    assert dealer.deal(videos[:50]) == ranks[:50]  # another task about the same videos


def test_all_ranks_deal_alike():
    videos = [name for name, count in VIDEOS.items() for _ in range(count)]
    assert Dealer(3).deal(videos) == Dealer(3).deal(videos)


def test_one_process_leaves_the_harness_as_it_is(monkeypatch):
    from lmms_eval.api.task import Task

    before = Task.build_all_requests
    monkeypatch.setenv("WORLD_SIZE", "1")
    deal.deal_by_video()
    assert Task.build_all_requests is before
    assert deal.dealt_videos() == []


@pytest.mark.parametrize("absent", [SystemExit("a.mp4 does not exist"), FileNotFoundError("a.mp4 does not exist")])
def test_a_question_whose_task_misses_its_video_is_dealt_too(absent):
    def to_messages(doc):
        raise absent

    task = SimpleNamespace(dataset={"test": [{}]})
    instance = SimpleNamespace(task_name="t", doc_id=0, args=("", to_messages, {}, 0, "t", "test"))
    assert deal._what_about(instance, task) == "a.mp4 does not exist"


@pytest.fixture(scope="module")
def uneven_needles(tmp_path_factory) -> Path:
    """Retrieval and counting questions about five videos, in an order that spreads each video; one is unreadable."""
    root = tmp_path_factory.mktemp("uneven")
    for name in VIDEOS:
        write_video(root / "test" / "videos" / f"{name}.mp4", seed=ord(name))
    (root / "test" / "videos" / f"{UNREADABLE}.mp4").write_bytes(b"")
    names = [name for turn in range(5) for name, count in VIDEOS.items() if turn < count]
    rows = [(name, "retrieval") for name in names] + [(name, "counting") for name in VIDEOS]
    samples = [
        {
            "id": f"{task}-{i}",
            "video": f"videos/{name}.mp4",
            "task": task,
            "question": f"Question {i}?",
            "options": ["1", "2", "3", "4"],
            "answer": "ABCD"[i % 4],
        }
        for i, (name, task) in enumerate(rows)
    ]
    (root / "test" / "annotations.json").write_text(json.dumps(samples))
    return root


def evaluate(
    folder: Path, checkpoint: Path, needles: Path, launcher: tuple[str, ...], *flags: str
) -> subprocess.CompletedProcess:
    """Runs the harness as it was installed, on CPU; ``launcher`` starts its processes."""
    command = [
        *(sys.executable, "-m", *launcher, "lmms_eval", "--model", "bimba", "--batch_size", "1", "--log_samples"),
        *("--model_args", f"pretrained={checkpoint},device=cpu,journal={folder / 'journal'}"),
        *("--tasks", "bimba_needle_retrieval,bimba_needle_counting", "--output_path", str(folder / "out"), *flags),
    ]
    environment = {**os.environ, "BIMBA_NEEDLE_ROOT": str(needles), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def answers(folder: Path) -> dict[str, list[tuple[int, list[str] | str, float]]]:
    """Of each task: the number, answer and score of each document."""
    found = {}
    for path in (folder / "out").rglob("*_samples_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        task = path.stem.split("_samples_")[1]
        found[task] = sorted((row["doc_id"], row["filtered_resps"], row["accuracy"]) for row in rows)
    return found


def results(folder: Path) -> dict:
    (path,) = (folder / "out").rglob("*_results.json")
    return json.loads(path.read_text())


def scores(folder: Path) -> dict[str, float]:
    return {task: result["accuracy,none"] for task, result in results(folder)["results"].items()}


def journalled(folder: Path) -> list[tuple[int, str, int]]:
    """Rank, video, document of each answer."""
    return [
        (int(path.stem[-1]), row["video"], row["doc_id"])
        for path in sorted((folder / "journal").glob("*.jsonl"))
        for row in map(json.loads, path.read_text().splitlines())
    ]


@pytest.fixture(scope="module")
def alone(checkpoint, uneven_needles, tmp_path_factory) -> Path:
    """What one process leaves."""
    folder = tmp_path_factory.mktemp("one")
    done = evaluate(folder, checkpoint, uneven_needles, (), "--limit", "11")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks_score_as_one_and_read_each_video_once(launcher, alone, checkpoint, uneven_needles, tmp_path):
    done = evaluate(tmp_path, checkpoint, uneven_needles, LAUNCHERS[launcher], "--limit", "11")
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = alone, tmp_path
    assert {task: len(rows) for task, rows in answers(one).items()} == {
        "bimba_needle_retrieval": 11,
        "bimba_needle_counting": 5,
    }
    assert answers(one) == answers(two)
    assert scores(one) == scores(two)
    owners = {(video, rank) for rank, video, _ in journalled(two)}
    assert len(owners) == len(VIDEOS) - 1  # each video on one rank, over both tasks
    assert {rank for _, rank in owners} == {0, 1}
    assert len(journalled(two)) == 11 + 5 - 2  # padding is not asked again, and what has no answer is not kept
    for folder in (one, two):
        counts = results(folder)["throughput"]
        assert (counts["avg_unreadable_videos"], counts["avg_incomplete"]) == (1, 1)


def test_all_ranks_stop_when_a_video_of_any_is_missing(checkpoint, uneven_needles, tmp_path):
    samples = json.loads((uneven_needles / "test" / "annotations.json").read_text())
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "videos").symlink_to(uneven_needles / "test" / "videos")
    samples[0]["video"] = "videos/gone.mp4"
    (tmp_path / "test" / "annotations.json").write_text(json.dumps(samples))
    done = evaluate(tmp_path, checkpoint, tmp_path, LAUNCHERS["torchrun"], "--verbosity", "DEBUG")
    assert done.returncode != 0
    assert done.stderr.count("BimbaError: 1 videos are missing") == 2
    assert journalled(tmp_path) == []


def test_another_harness_is_left_alone_with_a_warning(monkeypatch):
    from lmms_eval.api.task import Task

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Task, "build_all_requests", lambda self: None)
    said: list[str] = []
    monkeypatch.setattr(deal.logger, "warning", said.append)
    before = Task.build_all_requests
    deal.deal_by_video()
    assert Task.build_all_requests is before
    assert "several ranks may decode the same video" in said[0]
    monkeypatch.setenv("WORLD_SIZE", "1")
    deal.deal_by_video()
