"""Questions in one left-padded batch: the tokens of one question at a time, in float32."""

from __future__ import annotations

from collections import Counter

import pytest
from tiny_checkpoint import MAX_LENGTH, write_video
from transformers import GenerationConfig

from bimba.inference import EncodedVideo, Question
from bimba.inference.schedule import BATCH, Work
from bimba.types import BimbaError, SequenceTooLongError

PROMPTS = ["Who?", "What happens after the goal, and who is to blame?", "Why?", "And then what?", "Where is it?"]


@pytest.fixture
def video(engine, video_file) -> EncodedVideo:
    return engine.encode(video_file)


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """How often the engine generates one answer, and a batch."""
    counter: Counter[str] = Counter()
    for name in ("generate", "generate_batch"):
        method = getattr(EncodedVideo, name)
        monkeypatch.setattr(
            EncodedVideo,
            name,
            lambda self, *a, _method=method, _name=name, **k: (counter.update([_name]), _method(self, *a, **k))[1],
        )
    return counter


def test_prompts_of_different_lengths(video):
    alone = [video.generate(prompt, 24) for prompt in PROMPTS]
    assert video.generate_batch(PROMPTS, 24) == alone
    assert len({answer.text for answer in alone}) > 3
    assert [video.generate(prompt, 24) for prompt in PROMPTS] == alone  # the prefix is as it was


def test_no_prompts_have_no_answers(video):
    assert video.generate_batch([]) == []


@pytest.mark.parametrize("penalty", [None, 3.0])
def test_answers_that_stop_early(video, penalty):
    settings = {} if penalty is None else {"repetition_penalty": penalty}
    tokenizer = video.engine.processor.tokenizer
    seen = Counter(c for prompt in PROMPTS for c in set(video.generate(prompt, 24, **settings).text))
    ends = [tokenizer.convert_tokens_to_ids(c) for c, count in seen.items() if count == 1 and c != " "]
    settings["eos_token_id"] = ends
    alone = [video.generate(prompt, 24, **settings) for prompt in PROMPTS]
    assert len({answer.new_tokens for answer in alone}) > 1
    assert video.generate_batch(PROMPTS, 24, **settings) == alone


def test_the_checkpoints_repetition_penalty_holds(video):
    plain = video.generate_batch(PROMPTS, 12)
    before = video.engine.model.generation_config
    video.engine.model.generation_config = GenerationConfig(repetition_penalty=3.0)
    try:
        penalised = video.generate_batch(PROMPTS, 12)
        assert penalised == [video.generate(prompt, 12) for prompt in PROMPTS] != plain
    finally:
        video.engine.model.generation_config = before


def test_a_prompt_with_little_room_stops_where_it_would_alone(video):
    room = MAX_LENGTH - video.generate("Who?", 1).prompt_tokens
    prompts = ["Who?" + "x" * (room - 5), "Who?" + "x" * (room - 9)]
    alone = [video.generate(prompt) for prompt in prompts]
    assert [answer.new_tokens for answer in alone] == [5, 9]
    assert video.generate_batch(prompts) == alone


def test_what_a_batch_cannot_keep_is_refused(video):
    for settings in ({"do_sample": True}, {"num_beams": 2}, {"stop_strings": ["x"]}):
        with pytest.raises(BimbaError, match="expected greedy decoding"):
            video.generate_batch(PROMPTS, 4, **settings)
    with pytest.raises(SequenceTooLongError):
        video.generate_batch(["Who?", "why " * MAX_LENGTH], 4)
    with pytest.raises(BimbaError, match="max_new_tokens is 0"):
        video.generate_batch(PROMPTS, 0)


def test_all_questions_of_a_video_are_grouped_by_how_they_are_decoded(engine, video_file, tmp_path, calls):
    videos = [str(video_file), str(write_video(tmp_path / "other.mp4", seed=1))]
    questions = [
        Question(videos[i % 2], prompt, max_new_tokens=limit, sampling=sampling)
        for limit, sampling in ((6, {}), (9, {}), (6, {"repetition_penalty": 2.0}))
        for i, prompt in enumerate([*PROMPTS, *PROMPTS])
    ]
    expected = engine.answer_all(questions)
    assert calls == {"generate": 30}
    calls.clear()
    work = Work()
    assert engine.answer_all(questions, batch_questions=True, work=work) == expected
    assert (calls, work.answered) == ({"generate_batch": 6}, 30)


def test_batches_are_bounded_and_repeated_questions_asked_once(engine, video_file, calls):
    questions = [Question(str(video_file), f"Question {i // 2}?", max_new_tokens=4) for i in range(4 * BATCH)]
    expected = engine.answer_all(questions)
    calls.clear()
    assert engine.answer_all(questions, batch_questions=True) == expected
    assert calls == {"generate_batch": 4}


def test_what_is_drawn_by_lot_or_chosen_is_not_batched(engine, video_file, calls):
    drawn = {"do_sample": True, "temperature": 5.0}
    questions = [
        *(Question(str(video_file), "Who?", max_new_tokens=8, sampling=drawn) for _ in range(3)),
        Question(str(video_file), "Who?", num_options=3),
        Question(str(video_file), "Who?", num_options=26),
    ]
    work = Work()
    answers = engine.answer_all(questions, batch_questions=True, work=work)
    assert (calls, work.answered) == ({"generate": 3}, 5)
    assert [len(answer.probabilities or {}) for answer in answers] == [0, 0, 0, 3, 26]
