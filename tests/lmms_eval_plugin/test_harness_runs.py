"""The whole road: harness, plugin, tasks, engine, on a random checkpoint and real mp4 files."""

from __future__ import annotations

import errno
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoint import NUM_FRAMES, QUESTIONS_PER_TASK, write_needles, write_video

from bimba.data import isolated
from bimba.inference import EncodedVideo, VideoQA
from bimba.inference.answer import Generation
from bimba.report.files import LOCK, hold
from lmms_eval_plugin.tasks.bimba_needle.task import doc_to_text, load_questions

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = [f"bimba_needle_{task}" for task in ("counting", "ordering", "retrieval")]


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """Runs ``python evaluate.py ...`` in this process (importing the harness again would take ten seconds)."""
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), *sys.path])
    for variable in ("BIMBA_ROOT", "BIMBA_NEEDLE_ROOT"):
        monkeypatch.setenv(variable, "unset by the test")
        monkeypatch.delenv(variable)

    def run(*overrides: str) -> Path:
        arguments = ["evaluate.py", f"output_dir={tmp_path}/out", "device=cpu", *overrides]
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(str(REPOSITORY / "evaluate.py"), run_name="__main__")
        return tmp_path / "out"

    return run


def expected_answers(checkpoint, task):
    engine = VideoQA.from_pretrained(checkpoint, device="cpu")
    return [engine.encode(q["video"]).ask(doc_to_text(q), 16) for q in load_questions(task)]


def test_the_lmms_eval_command_needs_no_flag_and_says_what_it_could_not_read(checkpoint, tmp_path):
    needle_root = write_needles(tmp_path / "needle")
    (needle_root / "test" / "videos" / "b.mp4").write_bytes(b"")
    command = [
        str(Path(sys.executable).parent / "lmms-eval"),
        *("--model", "bimba", "--model_args", f"pretrained={checkpoint},device=cpu", "--tasks", "bimba_needle"),
        *("--batch_size", "1", "--limit", "2", "--log_samples", "--output_path", str(tmp_path / "out")),
    ]
    environment = {**os.environ, "BIMBA_NEEDLE_ROOT": str(needle_root), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    files = list(tmp_path.rglob("*_results.json"))
    assert len(files) == 1, done.stderr[-3000:]  # its exit code is 0 even when it failed
    results = json.loads(files[0].read_text())
    assert sorted(results["n-samples"]) == TASKS
    assert all(0 <= results["results"][task]["accuracy,none"] <= 1 for task in ["bimba_needle", *TASKS])
    assert len(list(tmp_path.rglob("*_samples_bimba_needle_*.jsonl"))) == 3
    assert (results["throughput"]["avg_unreadable_videos"], results["throughput"]["avg_incomplete"]) == (1, 1)
    said = done.stdout + done.stderr
    assert "INCOMPLETE: 1 of 2 videos are unreadable" in said
    assert said.count("journal=FOLDER") == 1


def test_evaluate_writes_what_the_engine_answers(evaluate, checkpoint, needle_root, monkeypatch, capsys):
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(needle_root))
    out = evaluate(f"checkpoint={checkpoint}")

    summary = json.loads((out / "summary.json").read_text())
    results = json.loads((out / "results.json").read_text())
    assert sorted(summary["tasks"]) == TASKS
    for task, score in summary["tasks"].items():
        answers = expected_answers(checkpoint, task.removeprefix("bimba_needle_"))
        samples = json.loads((out / "samples" / f"{task}.json").read_text())["samples"]
        assert [sample["filtered_resps"] for sample in samples] == [[answer] for answer in answers]
        right = sum(answer == sample["target"] for answer, sample in zip(answers, samples))
        assert score["n"] == QUESTIONS_PER_TASK
        assert score["chance"] == 0.25
        assert score["accuracy"] == right / QUESTIONS_PER_TASK == results["results"][task]["accuracy,none"]
        assert score["low"] <= score["accuracy"] <= score["high"]
    assert (summary["num_frames"], summary["unreadable_videos"]) == (NUM_FRAMES, {})
    assert (summary["temporal_pooling"], summary["reduction"]) == (1, [1, 2])
    assert (out / "summary.md").read_text().count("| bimba_needle_") == 3
    assert "bimba_needle_retrieval" in capsys.readouterr().out


def test_right_answers_are_scored(evaluate, checkpoint, needle_root, monkeypatch):
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(needle_root))
    monkeypatch.setattr(EncodedVideo, "generate", lambda self, prompt, n: Generation("B.", 1, 1))
    out = evaluate(f"checkpoint={checkpoint}", "benchmark.tasks=[bimba_needle_retrieval]")
    assert json.loads((out / "summary.json").read_text())["tasks"]["bimba_needle_retrieval"]["accuracy"] == 0.25


def test_an_unreadable_video_is_listed_in_the_summary(evaluate, checkpoint, tmp_path, monkeypatch):
    root = write_needles(tmp_path / "needle")
    broken = root / "test" / "videos" / "b.mp4"
    broken.write_bytes(broken.read_bytes()[:100])
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(root))
    out = evaluate(f"checkpoint={checkpoint}")
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["unreadable_videos"]) == [str(broken.resolve())]
    assert all(score["n"] == QUESTIONS_PER_TASK for score in summary["tasks"].values())


@pytest.mark.parametrize(("handled", "repeated", "unreadable"), [("repeat", 1, 0), ("error", 0, 1)])
def test_short_videos_are_counted_in_the_summary(
    evaluate, checkpoint, tmp_path, monkeypatch, handled, repeated, unreadable
):
    root = write_needles(tmp_path / "needle")
    write_video(root / "test" / "videos" / "b.mp4", num_frames=NUM_FRAMES - 1)
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(root))
    for again in (False, True):
        out = evaluate(f"checkpoint={checkpoint}", *([] if handled == "repeat" else [f"short_videos={handled}"]))
        summary = json.loads((out / "summary.json").read_text())
        assert (summary["resumed_answers"] > 0) == again
        assert summary["short_videos"] == {"handled": handled, "repeated": repeated}
        assert len(summary["unreadable_videos"]) == unreadable


def test_the_video_backend_is_the_one_asked_for(evaluate, checkpoint, needle_root, monkeypatch):
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(needle_root))
    monkeypatch.setenv("BIMBA_VIDEO_BACKEND", "auto")  # undone after the test
    asked, call = [], isolated.call
    monkeypatch.setattr(isolated, "call", lambda *a, **k: (asked.append(a[-1]), call(*a, **k))[1])
    evaluate(f"checkpoint={checkpoint}", "limit=1", "benchmark.tasks=[bimba_needle_counting]", "video_backend=pyav")
    assert set(asked) == {"pyav"}  # for the answer, and for the report
    with pytest.raises(SystemExit, match="'opencv'; expected one of auto, decord, torchcodec, pyav"):
        evaluate(f"checkpoint={checkpoint}", "video_backend=opencv")


def test_evaluate_limits_questions_and_frames(evaluate, checkpoint, needle_root, monkeypatch):
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(needle_root))
    out = evaluate(f"checkpoint={checkpoint}", "limit=1", "num_frames=2", "benchmark.tasks=[bimba_needle_counting]")
    summary = json.loads((out / "summary.json").read_text())
    assert {task: score["n"] for task, score in summary["tasks"].items()} == {"bimba_needle_counting": 1}
    assert (summary["num_frames"], summary["limit"]) == (2, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmark.environment.BIMBA_NEEDLE_ROOT=/nowhere"], "error: No needle test data.*bimba train"),
        (["checkpoint=/nowhere"], "error: .*checkpoint.*/nowhere"),
        (["device=nonsense"], "error: .*'nonsense'"),
        (["short_videos=skip"], "error: short_videos is 'skip'; expected one of error, repeat"),
        (["+extra=1"], "error: Nobody reads extra; expected only answers, base, batch_questions, "),
    ],
)
def test_a_failed_evaluation_does_not_exit_0(evaluate, checkpoint, overrides, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        evaluate(f"checkpoint={checkpoint}", *overrides)
    assert not list(tmp_path.rglob("summary.json"))


def test_a_second_evaluation_in_the_folder_is_refused_and_writes_nothing_there(evaluate, checkpoint, tmp_path):
    out = tmp_path / "out"
    with hold(out), pytest.raises(SystemExit, match=f"error: Another evaluation is writing to {out}. Wait until"):
        evaluate(f"checkpoint={checkpoint}", "benchmark=all", "benchmark.source=miniature")
    assert {path.name for path in out.iterdir()} <= {LOCK, ".hydra", "evaluate.log"}  # the latter two are Hydra's
    (record,) = (out / ".hydra").iterdir()  # each run has its own
    assert "benchmark=all" in (record / "overrides.yaml").read_text()


def test_a_logger_that_cannot_be_is_known_before_the_model_is_read(evaluate, needle_root, monkeypatch):
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(needle_root))
    monkeypatch.setattr("bimba.training.loggers.base.find_spec", lambda package: None)
    with pytest.raises(SystemExit, match="error: logger=tensorboard needs the package tensorboard, which is not inst"):
        evaluate("checkpoint=/nowhere", "logger=tensorboard")


@pytest.mark.parametrize("written", ["bimba.report.output.write_json", "bimba.report.tracking.numbers"])
def test_a_disk_full_at_the_end_is_one_line(evaluate, checkpoint, needle_root, tmp_path, monkeypatch, written):
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(needle_root))

    def fail(*arguments, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(written, fail)
    task = "bimba_needle_counting"
    with pytest.raises(SystemExit, match=r"error: Results cannot be written to \S+ \(No space left on device\)"):
        evaluate(f"checkpoint={checkpoint}", "limit=1", f"benchmark.tasks=[{task}]", "logger=csv")
    assert json.loads((tmp_path / "out/journal/journal-0.jsonl").read_text())["task"] == task


def test_a_disk_that_a_task_found_full_is_one_line(evaluate, checkpoint, needle_root, monkeypatch):
    """Tasks write their submissions while the harness runs."""
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(needle_root))

    def fail(**arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lmms_eval.evaluator.simple_evaluate", fail)
    with pytest.raises(SystemExit, match=r"error: Results cannot be written to \S+ \(No space left on device\)"):
        evaluate(f"checkpoint={checkpoint}")


def test_a_video_may_take_as_long_as_is_said(evaluate, checkpoint, needle_root, monkeypatch):
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(needle_root))
    monkeypatch.setenv("BIMBA_DECODE_DEADLINE_S", "300")  # undone after the test
    asked, call = [], isolated.call
    monkeypatch.setattr(isolated, "call", lambda *a, **k: (asked.append(k["deadline_s"]), call(*a, **k))[1])
    options = ["limit=1", "benchmark.tasks=[bimba_needle_counting]", "decode_deadline_s=77"]
    evaluate(f"checkpoint={checkpoint}", *options)
    assert set(asked) == {77.0}
    with pytest.raises(SystemExit, match="error: decode_deadline_s is -1; expected a number of at least 0"):
        evaluate(f"checkpoint={checkpoint}", "decode_deadline_s=-1")


def test_another_run_takes_the_tokens_of_videos_from_disk(evaluate, checkpoint, needle_root, tmp_path, monkeypatch):
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(needle_root))
    options = [f"checkpoint={checkpoint}", f"token_cache={tmp_path}/tokens", "benchmark.tasks=[bimba_needle_counting]"]
    found = []
    for _ in range(2):
        evaluate(*options).rename(tmp_path / f"out{len(found)}")  # the journal with it
        summary = json.loads((tmp_path / f"out{len(found)}/summary.json").read_text())
        found.append({name: summary["throughput"][name] for name in ("decoded", "stored", "resumed")})
    assert found == [{"decoded": 2, "stored": 0, "resumed": 0}, {"decoded": 0, "stored": 2, "resumed": 0}]


def test_a_harness_that_leaves_with_code_0_is_an_error(evaluate, checkpoint, needle_root, monkeypatch):
    monkeypatch.setenv("BIMBA_NEEDLE_ROOT", str(needle_root))
    monkeypatch.setattr("lmms_eval.evaluator.simple_evaluate", lambda **kwargs: sys.exit(0))
    with pytest.raises(SystemExit, match="stopped before it had results") as caught:
        evaluate(f"checkpoint={checkpoint}")
    assert caught.value.code != 0


def test_an_unknown_key_is_an_error_and_help_is_immediate():
    code = "import runpy; sys.argv[0] = 'evaluate.py'; runpy.run_path('evaluate.py', run_name='__main__')"
    check = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    done = subprocess.run(
        [sys.executable, "-c", check + code, "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "checkpoint" in done.stdout
    assert done.stdout.rstrip().endswith("False")
    done = subprocess.run(
        [sys.executable, "evaluate.py", "chekpoint=x"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "chekpoint" in done.stderr
