"""The harness's model, fed with requests as the harness builds them."""

from __future__ import annotations

import json
from copy import deepcopy
from types import SimpleNamespace

import pytest
from lmms_eval.api.instance import Instance
from loguru import logger
from tiny_checkpoint import NUM_FRAMES, conditioned_model, write_video

import bimba.inference.engine as engine_module
from bimba.checkpoint import save_pretrained
from bimba.inference import EncodedVideo, VideoQA
from bimba.types import BimbaError, SequenceTooLongError
from lmms_eval_plugin.asking import generation_options
from lmms_eval_plugin.models.bimba import Bimba

GEN_KWARGS = {"max_new_tokens": 6, "do_sample": False, "until": ["\n\n"]}
TASK, SPLIT = "task", "test"


@pytest.fixture
def videos(tmp_path):
    return [str(write_video(tmp_path / f"{i}.mp4", seed=i)) for i in range(2)]


@pytest.fixture
def model(checkpoint) -> Bimba:
    return Bimba(pretrained=str(checkpoint), device="cpu")


def messages(doc):
    return [
        {"role": "user", "content": [{"type": "video", "url": doc["video"]}, {"type": "text", "text": doc["text"]}]}
    ]


def requests(model, docs, gen_kwargs=GEN_KWARGS, to_messages=messages):
    model.task_dict[TASK] = {SPLIT: docs}
    metadata = [{"task": TASK, "doc_id": i, "repeats": 1} for i in range(len(docs))]
    arguments = [("", to_messages, deepcopy(gen_kwargs), i, TASK, SPLIT) for i in range(len(docs))]
    return [Instance("generate_until", a, 0, m) for a, m in zip(arguments, metadata)]


def alternating_docs(videos, n=6):
    return [{"video": videos[i % 2], "text": f"Question number {i}?"} for i in range(n)]


def test_answers_come_in_request_order_and_each_video_is_decoded_and_encoded_once(model, videos, monkeypatch):
    decoded, encoded = [], []
    read_frames, encode_pixels = engine_module.read_frames, model.engine.encode_pixels
    monkeypatch.setattr(
        engine_module, "read_frames", lambda p, *a, **k: (decoded.append(p), read_frames(p, *a, **k))[1]
    )
    monkeypatch.setattr(model.engine, "encode_pixels", lambda x: (encoded.append(len(x)), encode_pixels(x))[1])
    docs = alternating_docs(videos)
    results = model.generate_until(requests(model, docs))

    assert sorted(decoded) == videos
    assert encoded == [NUM_FRAMES] * 2
    engine = VideoQA(model.engine.model, model.engine.processor)
    assert [r.text for r in results] == [engine.encode(d["video"]).ask(d["text"], 6) for d in docs]
    assert len({r.text for r in results}) > 2
    assert all(0 < r.token_counts.output_tokens <= 6 < r.token_counts.input_tokens for r in results)


def test_a_compressor_that_reads_the_question_sees_each_video_once(videos, tmp_path, monkeypatch):
    save_pretrained(*conditioned_model(), tmp_path / "checkpoint")
    model = Bimba(pretrained=str(tmp_path / "checkpoint"), device="cpu", batch_questions=True)
    seen = []
    see = model.engine.model.space_time_tokens
    monkeypatch.setattr(model.engine.model, "space_time_tokens", lambda x: seen.append(len(x)) or see(x))
    docs = [{"video": videos[0], "text": text} for text in ("Who?", "What happens then?", "Where is it?")]
    results = model.generate_until(requests(model, docs))
    assert seen == [1]
    video = VideoQA(model.engine.model, model.engine.processor).encode(videos[0])
    assert [r.text for r in results] == [video.ask(d["text"], 6) for d in docs]


def test_generation_arguments_are_not_changed(model, videos):
    asked = requests(model, alternating_docs(videos, 2))
    model.generate_until(asked)
    assert [request.args[2] for request in asked] == [GEN_KWARGS] * 2


def test_text_ends_at_a_stop_string(model, videos):
    docs = alternating_docs(videos, 1)
    (whole,) = model.generate_until(requests(model, docs))
    assert len(whole.text) > 2
    (cut,) = model.generate_until(requests(model, docs, {**GEN_KWARGS, "until": [whole.text[2]]}))
    assert cut.text == whole.text[: whole.text.index(whole.text[2])]


def test_missing_videos_are_named_before_anything_is_decoded(model, videos, monkeypatch):
    monkeypatch.setattr(engine_module, "read_frames", lambda *args: pytest.fail("decoded"))
    docs = [{"video": videos[0], "text": "Who?"}, {"video": "/no/such.mp4", "text": "Who?"}]
    with pytest.raises(BimbaError, match=r"1 videos are missing: /no/such\.mp4"):
        model.generate_until(requests(model, docs))


def test_a_prompt_that_is_too_long_is_found_before_anything_is_decoded(model, videos, monkeypatch):
    monkeypatch.setattr(engine_module, "read_frames", lambda *args: pytest.fail("decoded"))
    docs = [*alternating_docs(videos, 3), {"video": videos[0], "text": "why " * 500}]
    with pytest.raises(SequenceTooLongError):
        model.generate_until(requests(model, docs))


def test_an_unreadable_video_is_counted_and_costs_no_other_answer(model, videos, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    docs = alternating_docs(videos, 4)
    expected = [r.text for r in model.generate_until(requests(model, docs))]
    mixed = [*docs[:2], {"video": str(broken), "text": "Who?"}, {"video": str(broken), "text": "What?"}, *docs[2:]]
    results = [r.text for r in model.generate_until(requests(model, mixed))]
    assert results == [*expected[:2], "", "", *expected[2:]]
    assert list(model.unreadable) == [str(broken)]
    assert "broken.mp4" in model.unreadable[str(broken)]


def short_docs(videos, tmp_path):
    path = str(write_video(tmp_path / "short.mp4", num_frames=NUM_FRAMES - 1))
    return path, [*alternating_docs(videos, 2), *({"video": path, "text": text} for text in ("Who?", "What?"))]


def test_short_videos_repeat_frames_and_are_counted(model, videos, tmp_path):
    path, docs = short_docs(videos, tmp_path)
    messages: list[str] = []
    sink = logger.add(messages.append, level="WARNING", format="{message}")
    try:
        results = model.generate_until(requests(model, docs))
    finally:
        logger.remove(sink)
    assert (model.short, model.unreadable) == ({path}, {})
    said = [message for message in messages if path in message]
    assert len(said) == 1
    assert "1 of 3 videos have fewer frames than were asked for" in said[0]
    video = VideoQA(model.engine.model, model.engine.processor).encode(path, short_videos="repeat")
    assert [r.text for r in results[2:]] == [video.ask("Who?", 6), video.ask("What?", 6)]


def test_short_videos_can_count_as_unreadable(checkpoint, videos, tmp_path):
    model = Bimba(pretrained=str(checkpoint), device="cpu", short_videos="error")
    path, docs = short_docs(videos, tmp_path)
    results = model.generate_until(requests(model, docs))
    assert [r.text for r in results[2:]] == ["", ""]
    assert (model.short, list(model.unreadable)) == (set(), [path])
    with pytest.raises(BimbaError, match="short_videos is 'skip'"):
        Bimba(pretrained=str(checkpoint), device="cpu", short_videos="skip")


def test_an_error_while_reading_that_is_not_the_videos_stops_the_run(model, videos, monkeypatch):
    def out_of_memory(*args, **kwargs):
        raise MemoryError("full")

    monkeypatch.setattr(engine_module, "read_frames", out_of_memory)
    with pytest.raises(MemoryError, match="full"):
        model.generate_until(requests(model, alternating_docs(videos)))


def test_what_is_not_one_question_about_one_video_is_refused(model, videos):
    def two_videos(doc):
        return [{"role": "user", "content": [{"type": "video", "url": doc["video"]}] * 2}]

    with pytest.raises(BimbaError, match=r"document 0.*2 videos.*one user turn with one video"):
        model.generate_until(requests(model, alternating_docs(videos, 1), to_messages=two_videos))


CHOOSE = {"choose": True, "until": []}


class Task:
    """As much of a task of the harness as the model asks."""

    def __init__(self, doc_to_choice=lambda doc: list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")[: doc["number"]]):
        self.config = SimpleNamespace(doc_to_choice=doc_to_choice)
        self.doc_to_choice = doc_to_choice

    def doc_to_messages(self, doc):
        return messages(doc)


def choosing_docs(videos, numbers=(2, 5, 26, 3)):
    return [{**doc, "number": number} for doc, number in zip(alternating_docs(videos), numbers)]


def test_a_letter_is_chosen_among_as_many_as_the_document_has_options(model, videos):
    docs = choosing_docs(videos)
    results = model.generate_until(requests(model, docs, CHOOSE, Task().doc_to_messages))
    engine = VideoQA(model.engine.model, model.engine.processor)
    chosen = [engine.encode(doc["video"]).choose_letter(doc["text"], doc["number"]) for doc in docs]
    assert [result.text for result in results] == [choice.letter for choice in chosen]
    assert [result.token_counts.input_tokens for result in results] == [choice.prompt_tokens for choice in chosen]
    assert all(result.token_counts.output_tokens == 0 for result in results)


def test_a_journal_keeps_probabilities_and_knows_chosen_from_generated(checkpoint, videos, tmp_path, monkeypatch):
    docs = choosing_docs(videos)

    def answers(gen_kwargs):
        model = Bimba(pretrained=str(checkpoint), device="cpu", journal=str(tmp_path))
        return model, [r.text for r in model.generate_until(requests(model, docs, gen_kwargs, Task().doc_to_messages))]

    _, chosen = answers(CHOOSE)
    _, generated = answers({**GEN_KWARGS, "until": []})
    assert all(letter in tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for letter in chosen)
    assert chosen != generated
    lines = [json.loads(line) for line in (tmp_path / "journal-0.jsonl").read_text().splitlines()]
    assert sorted(len(line.get("probabilities", {})) for line in lines) == [0, 0, 0, 0, 2, 3, 5, 26]
    monkeypatch.setattr("bimba.inference.engine.read_frames", lambda *args, **kwargs: pytest.fail("decoded"))
    model, again = answers(CHOOSE)
    assert (again, model.resumed) == (chosen, 4)


def test_numbers_of_options_without_letters_are_named_all_at_once_before_anything_is_decoded(
    model, videos, monkeypatch
):
    monkeypatch.setattr(engine_module, "read_frames", lambda *args: pytest.fail("decoded"))
    docs = choosing_docs(videos, (2, 1, 4, 0))
    task = Task(lambda doc: ["x"] * (27 if doc["number"] == 4 else doc["number"]))
    message = (
        r"3 questions have too few or too many options to choose from: task document 1 \(1\), task document 2 \(27\), "
        r"task document 3 \(0\)\. Expected 2 to 26"
    )
    with pytest.raises(BimbaError, match=message):
        model.generate_until(requests(model, docs, CHOOSE, task.doc_to_messages))


def test_choosing_needs_a_task_that_says_from_what_and_no_lot(model, videos):
    docs = choosing_docs(videos)
    for to_messages in (messages, Task(doc_to_choice=None).doc_to_messages):
        with pytest.raises(BimbaError, match=r"Task task, document 0: .*has no doc_to_choice"):
            model.generate_until(requests(model, docs, CHOOSE, to_messages))
    with pytest.raises(BimbaError, match="chosen by its probability, not drawn"):
        model.generate_until(requests(model, docs, {**CHOOSE, "temperature": 1.0}, Task().doc_to_messages))


def test_batches_have_the_answers_of_one_at_a_time(checkpoint, videos, tmp_path, monkeypatch):
    calls = []
    batch = EncodedVideo.generate_batch
    monkeypatch.setattr(
        EncodedVideo, "generate_batch", lambda self, p, *a, **k: (calls.append(len(p)), batch(self, p, *a, **k))[1]
    )
    docs = [{**doc, "text": doc["text"] * (1 + i)} for i, doc in enumerate(alternating_docs(videos, 7))]
    found = {}
    for batched in (False, True):
        model = Bimba(pretrained=str(checkpoint), device="cpu", journal=str(tmp_path), batch_questions=batched)
        found[batched] = model.generate_until(requests(model, docs))
        assert model.resumed == 0  # an answer from a batch is not one of one at a time
    assert found[True] == found[False]
    assert sorted(calls) == [3, 4]


def test_no_requests_are_no_answers(model):
    assert model.generate_until([]) == []


def test_what_cannot_work_says_why(model):
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="several rounds"):
        model.generate_until_multi_round([])


def test_the_harness_can_free_the_memory(model):
    model.clean()
    assert not hasattr(model, "engine")


@pytest.mark.parametrize(
    ("gen_kwargs", "expected"),
    [
        ({}, (16, [], {})),
        ({"until": None, "max_new_tokens": 8}, (8, [], {})),
        ({"until": "stop", "do_sample": False, "top_p": 1.0, "num_beams": 1}, (16, ["stop"], {"num_beams": 1})),
        ({"temperature": 0.7}, (16, [], {"do_sample": True, "temperature": 0.7})),
        ({"do_sample": True, "top_p": 0.9}, (16, [], {"do_sample": True, "top_p": 0.9})),
        ({"do_sample": True, "temperature": 0}, (16, [], {})),
        ({"do_sample": False, "temperature": 0.7}, (16, [], {})),
        ({"choose": True, "num_frames": 64}, (16, [], {})),
    ],
)
def test_generation_options(gen_kwargs, expected):
    before = deepcopy(gen_kwargs)
    assert generation_options(gen_kwargs) == expected
    assert gen_kwargs == before
