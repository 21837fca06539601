"""Nothing answered is lost: kills, changed questions, full disks, bad videos."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
from lmms_eval.api.instance import Instance
from tiny_checkpoint import NUM_FRAMES, tiny_model, write_video

from bimba.checkpoint import save_pretrained
from bimba.inference import EncodedVideo
from bimba.inference.answer import Generation
from bimba.types import BimbaError, SequenceTooLongError
from lmms_eval_plugin.models.bimba import PADDING, Bimba

GEN_KWARGS = {"max_new_tokens": 4, "do_sample": False, "until": ["\n\n"]}
TASK, SPLIT = "task", "test"
NUM_QUESTIONS = 8


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return [str(write_video(folder / f"{i}.mp4", seed=i)) for i in range(2)]


@pytest.fixture
def docs(videos):
    return [{"video": videos[i % 2], "text": f"Question {i}?"} for i in range(NUM_QUESTIONS)]


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The prompts that reach the model."""
    prompts: list[str] = []
    generate = EncodedVideo.generate
    monkeypatch.setattr(
        EncodedVideo,
        "generate",
        lambda self, prompt, *a, **k: (prompts.append(prompt), generate(self, prompt, *a, **k))[1],
    )
    return prompts


def messages(doc):
    if doc["video"] is None:
        sys.exit(f"video path:{doc['text']} does not exist, please check")  # as the harness's own tasks do
    return [
        {"role": "user", "content": [{"type": "video", "url": doc["video"]}, {"type": "text", "text": doc["text"]}]}
    ]


def requests(model, docs, repeats=1, **gen_kwargs):
    model.task_dict[TASK] = {SPLIT: docs}
    return [
        Instance(
            "generate_until",
            ("", messages, deepcopy({**GEN_KWARGS, **gen_kwargs}), i, TASK, SPLIT),
            0,
            {"task": TASK, "doc_id": i, "repeats": repeats},
        )
        for i in range(len(docs))
        for _ in range(repeats)
    ]


def run(checkpoint, docs, journal=None, repeats=1, gen_kwargs=None, **options):
    model = Bimba(pretrained=str(checkpoint), device="cpu", journal=journal and str(journal), **options)
    results = model.generate_until(requests(model, docs, repeats, **(gen_kwargs or {})))
    return model, [result.text for result in results]


def lines(journal: Path) -> list[dict]:
    return [json.loads(line) for line in (journal / "journal-0.jsonl").read_text().splitlines()]


def test_a_finished_run_is_taken_from_the_journal_without_a_forward(checkpoint, docs, tmp_path, asked, monkeypatch):
    _, plain = run(checkpoint, docs)
    _, first = run(checkpoint, docs, tmp_path)
    assert first == plain
    del asked[:]
    monkeypatch.setattr("bimba.inference.engine.read_frames", lambda *args, **kwargs: pytest.fail("decoded"))
    model, again = run(checkpoint, docs, tmp_path)
    assert (again, asked, model.resumed) == (first, [], NUM_QUESTIONS)
    assert len(lines(tmp_path)) == NUM_QUESTIONS


def test_a_line_says_what_was_asked_and_answered(checkpoint, docs, tmp_path):
    _, texts = run(checkpoint, docs[:1], tmp_path)
    (line,) = lines(tmp_path)
    assert (line["task"], line["doc_id"], line["repeat"], line["video"]) == (TASK, 0, 0, "0.mp4")
    assert (line["num_frames"], line["max_new_tokens"], line["short_videos"]) == (NUM_FRAMES, 4, "repeat")
    assert line["text"].startswith(texts[0])
    assert line["new_tokens"] <= 4 < line["prompt_tokens"]
    assert {"key", "prompt_hash", "sampling", "model", "video_bytes", "video_mark"} <= set(line)
    assert line["is_short"] is False


KILLED = """
import os, signal, sys
from test_plugin_resume import EncodedVideo, run
generate, asked = EncodedVideo.generate, []
def until_killed(self, prompt, *args, **kwargs):
    asked.append(prompt)
    if len(asked) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return generate(self, prompt, *args, **kwargs)
EncodedVideo.generate = until_killed
docs = [{"video": sys.argv[3].split(":")[i % 2], "text": f"Question {i}?"} for i in range(8)]
run(sys.argv[1], docs, sys.argv[2])
"""


@pytest.mark.parametrize("killed_at", [1, 6])
def test_a_killed_run_asks_again_at_most_the_question_in_flight(checkpoint, docs, videos, tmp_path, asked, killed_at):
    _, expected = run(checkpoint, docs)
    del asked[:]
    arguments = [str(checkpoint), str(tmp_path), ":".join(videos), str(killed_at)]
    here = Path(__file__).resolve().parent
    paths = os.pathsep.join(map(str, [here, here.parent, here.parents[1]]))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env={**os.environ, "PYTHONPATH": paths}, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL
    model, texts = run(checkpoint, docs, tmp_path)
    assert texts == expected
    assert model.resumed == killed_at - 1
    assert len(asked) == NUM_QUESTIONS - (killed_at - 1)  # the one in flight, and those after it


def test_what_changed_is_asked_again_and_nothing_else(checkpoint, docs, tmp_path, asked):
    run(checkpoint, docs, tmp_path)
    del asked[:]
    changed = [*docs[:3], {**docs[3], "text": "Another question?"}, *docs[4:]]
    run(checkpoint, changed, tmp_path)
    assert asked == ["Another question?"]

    for options in ({"gen_kwargs": {"max_new_tokens": 3}}, {"num_frames": 2}, {"short_videos": "error"}):
        del asked[:]
        run(checkpoint, docs, tmp_path, **options)
        assert len(asked) == NUM_QUESTIONS
        run(checkpoint, docs, tmp_path, **options)
        assert len(asked) == NUM_QUESTIONS

    model, processor = tiny_model(seed=1)
    save_pretrained(model, processor, tmp_path / "other")
    model, _ = run(tmp_path / "other", docs, tmp_path)
    assert model.resumed == 0


def test_another_video_of_the_same_name_and_size_is_asked_about_anew(checkpoint, docs, tmp_path, asked):
    video = write_video(tmp_path / "film.mp4", seed=5)
    other = write_video(tmp_path / "other.mp4", num_frames=8, seed=6)
    first, second = video.read_bytes(), other.read_bytes()
    mine = [{"video": str(video), "text": "Who?"}]
    run(checkpoint, mine, tmp_path / "journal")
    video.write_bytes(second.ljust(len(first), b"\0"))
    run(checkpoint, mine, tmp_path / "journal")
    assert len(video.read_bytes()) == len(first)
    assert len(asked) == 2
    video.write_bytes(first)  # later, but the same
    assert run(checkpoint, mine, tmp_path / "journal")[0].resumed == 1
    assert len(asked) == 2


def test_short_videos_are_counted_whoever_read_them(checkpoint, docs, tmp_path, asked, monkeypatch):
    short = str(write_video(tmp_path / "short.mp4", num_frames=NUM_FRAMES - 1))
    (tmp_path / "link.mp4").symlink_to(short)
    mixed = [{"video": short, "text": "Who?"}, *docs[:2], {"video": str(tmp_path / "link.mp4"), "text": "What?"}]
    whole, _ = run(checkpoint, mixed, tmp_path / "journal")
    assert whole.short == {short}
    written = lines(tmp_path / "journal")
    for kept in range(len(mixed) + 1):  # as if it had been killed after so many answers
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / "journal-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written[:kept]))
        said: list[str] = []
        monkeypatch.setattr("lmms_eval_plugin.models.bimba.logger.warning", said.append)
        again, _ = run(checkpoint, mixed, folder)
        assert (again.resumed, len(again.short)) == (kept, 1)
        assert "1 of 3 videos have fewer frames than were asked for" in said[-1]


def test_without_a_journal_a_warning_says_how_to_have_one(checkpoint, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("lmms_eval_plugin.models.bimba.logger.warning", said.append)
    Bimba(pretrained=str(checkpoint), device="cpu", journal=str(tmp_path))
    monkeypatch.setenv("RANK", "1")  # the first process says it for all
    Bimba(pretrained=str(checkpoint), device="cpu")
    assert said == []
    monkeypatch.setenv("RANK", "0")
    Bimba(pretrained=str(checkpoint), device="cpu")
    assert len(said) == 1
    assert "--model_args ...,journal=FOLDER" in said[0]


def test_two_evaluations_on_one_folder_are_refused(checkpoint, docs, tmp_path, asked, monkeypatch):
    from bimba.inference.journal import Journal

    with Journal(tmp_path), pytest.raises(BimbaError, match="Another evaluation is writing to"):
        run(checkpoint, docs, tmp_path)
    assert asked == []


def test_a_full_disk_stops_nothing(checkpoint, docs, tmp_path, monkeypatch):
    _, expected = run(checkpoint, docs)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    _, texts = run(checkpoint, docs, tmp_path)
    assert texts == expected


def test_an_empty_answer_is_an_answer(checkpoint, docs, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(EncodedVideo, "generate", lambda *args, **kw: calls.append(args) or Generation("", 9, 1))
    for _ in range(2):
        assert run(checkpoint, docs, tmp_path)[1] == [""] * NUM_QUESTIONS
    assert len(calls) == NUM_QUESTIONS


def test_a_video_that_was_repaired_is_asked_about_in_the_next_run(checkpoint, docs, tmp_path, asked):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"")
    mixed = [*docs, {"video": str(broken), "text": "Who?"}]
    model, texts = run(checkpoint, mixed, tmp_path)
    assert (texts[-1], model.incomplete, list(model.unreadable)) == ("", True, [str(broken)])
    write_video(broken)
    del asked[:]
    model, texts = run(checkpoint, mixed, tmp_path)
    assert (asked, model.incomplete) == (["Who?"], False)
    assert texts[-1] != ""


def test_another_video_backend_is_asked_anew(checkpoint, docs, tmp_path, asked, monkeypatch):
    monkeypatch.setenv("BIMBA_VIDEO_BACKEND", "decord")  # undone after the test
    for backend in (None, "decord", "pyav", "pyav"):
        run(checkpoint, docs[:2], tmp_path, video_backend=backend)
    assert len(asked) == 4


def test_repeats_are_told_apart_and_padding_is_not_asked(checkpoint, docs, tmp_path, asked):
    model = Bimba(pretrained=str(checkpoint), device="cpu", journal=str(tmp_path))
    instances = requests(model, docs[:2], repeats=2, do_sample=True, temperature=9.0)
    padding = deepcopy(instances[-1])
    padding.metadata = {**padding.metadata, PADDING: True}
    texts = [result.text for result in model.generate_until([*instances, padding, padding])]
    assert [(line["doc_id"], line["repeat"]) for line in lines(tmp_path)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(asked) == 4
    assert len(texts) == 6
    assert texts[4] == texts[5] == texts[2]


def test_two_documents_that_ask_the_same_are_two_answers_of_one_forward(checkpoint, docs, tmp_path, asked):
    _, texts = run(checkpoint, [docs[0], docs[0]], tmp_path)
    assert texts[0] == texts[1]
    assert len(asked) == 1
    assert [line["doc_id"] for line in lines(tmp_path)] == [0, 1]


def test_all_missing_videos_are_named_also_those_of_tasks_that_would_exit(checkpoint, docs):
    mixed = [
        *docs,
        {"video": None, "text": "/a.mp4"},
        {"video": "/b.mp4", "text": "?"},
        {"video": None, "text": "/c.mp4"},
    ]
    with pytest.raises(BimbaError, match=r"3 videos are missing: video path:/a\.mp4 does .*, /b\.mp4, .*/c\.mp4"):
        run(checkpoint, mixed)


def test_all_questions_that_are_too_long_are_named(checkpoint, docs, asked):
    long = {"video": docs[0]["video"], "text": "why " * 500}
    with pytest.raises(SequenceTooLongError, match=r"2 questions are too long \(task document 0, task document 9\)"):
        run(checkpoint, [long, *docs, long])
    assert asked == []


def test_a_task_says_how_many_frames_unless_the_user_does(checkpoint, docs, tmp_path):
    run(checkpoint, docs[:1], tmp_path / "task", gen_kwargs={"num_frames": 6})
    run(checkpoint, docs[:1], tmp_path / "user", gen_kwargs={"num_frames": 6}, num_frames=2)
    assert [lines(tmp_path / who)[0]["num_frames"] for who in ("task", "user")] == [6, 2]


def test_tokens_are_kept_for_the_next_run(checkpoint, docs, tmp_path):
    first, texts = run(checkpoint, docs, token_cache=str(tmp_path))
    second, again = run(checkpoint, docs, token_cache=str(tmp_path))
    assert again == texts
    assert (first.work.decoded, second.work.decoded, second.work.stored) == (2, 0, 2)
