"""Several questions about one video: the prompt is the one of training, what was read stays read, answers can stop."""

from __future__ import annotations

import pytest
import torch
from tiny_checkpoint import MAX_LENGTH, conditioned_model

from bimba.data.prompt import with_medium
from bimba.data.tokenize import tokenize_conversation
from bimba.inference import VideoQA
from bimba.types import BimbaError, SequenceTooLongError


@pytest.fixture
def video(engine, video_file):
    return engine.encode(video_file)


def conversation_of(said: list[str], newline: bool = True) -> list[dict[str, str]]:
    """As training data have it."""
    texts = [with_medium(said[0], newline=newline), *said[1:]]
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize("newline", [True, False])
def test_the_prompt_is_what_training_makes_of_the_turns(engine, newline, monkeypatch):
    monkeypatch.setattr(engine.processor, "newline_after_medium", newline)
    said = ["Who?", "Number 7.", "When did <|im_end|> score?", "In minute 3.", "And who else?", "Nobody."]
    sample = tokenize_conversation(conversation_of(said, newline), engine.processor.tokenizer, [20])
    learned = sample["labels"] != -100
    answers = torch.nonzero(learned & ~torch.roll(learned, 1)).flatten().tolist()  # where each answer begins
    assert len(answers) == 3
    for turn, start in enumerate(answers):
        ids = engine.tokenize_turns(said[: 2 * turn + 1], 20)
        assert torch.equal(ids, sample["input_ids"][:start])


def spied(video, monkeypatch):
    """What the model was given each time: the prompt's ids, and of how many it knew keys and values."""
    calls, continuation = [], type(video).continuation

    def spy(self, ids, cache, *arguments, **settings):
        calls.append((ids, cache.get_seq_length()))
        return continuation(self, ids, cache, *arguments, **settings)

    monkeypatch.setattr(type(video), "continuation", spy)
    return calls


def test_each_answer_is_that_to_the_whole_conversation_and_only_new_words_are_read(video, engine, monkeypatch):
    calls = spied(video, monkeypatch)
    chat = video.chat()
    said: list[str] = []
    for question in ("Who?", "When?", "Where is it?"):
        text = "".join(chat.say(question, 6)).strip()
        ids = engine.tokenize_turns([*said, question], len(video.tokens))
        fresh = video.continuation(ids, video.prefix_copy(), 6)
        calls.pop()
        assert torch.equal(calls[-1][0], ids)
        assert text == chat.last.text == engine.processor.tokenizer.decode(fresh, skip_special_tokens=True).strip()
        said += [question, text]
    assert chat.turns == list(zip(said[::2], said[1::2]))
    assert len({answer for _, answer in chat.turns}) > 1
    known = [length for _, length in calls]
    assert known[0] == len(video.prefix_ids)
    for (ids, _), (_, length) in zip(calls, calls[1:]):
        assert length >= len(ids)  # of the conversation before, its whole prompt at least
    assert chat.num_tokens == len(calls[-1][0]) + chat.last.new_tokens


def test_the_first_answer_is_that_of_ask_and_asking_in_between_changes_nothing(video):
    alone, disturbed = video.chat(), video.chat()
    first = "".join(alone.say("Who?", 6)).strip()
    assert first == video.ask("Who?", 6)
    second = "".join(alone.say("When?", 6))
    "".join(disturbed.say("Who?", 6))
    video.ask("Something else?", 3)
    assert "".join(disturbed.say("When?", 6)) == second


def test_after_a_reset_nothing_is_known_but_the_video(video):
    chat = video.chat()
    first = "".join(chat.say("Who?", 6))
    "".join(chat.say("When?", 6))
    chat.reset()
    assert (chat.turns, chat.last, chat.num_tokens) == ([], None, 0)
    assert "".join(chat.say("Who?", 6)) == first


def test_an_answer_that_is_stopped_counts_up_to_there_and_the_next_one_is_right(video, engine):
    chat = video.chat()
    pieces = chat.say("Who?", 100)
    next(pieces)
    pieces.close()
    ((question, said),) = chat.turns
    assert question == "Who?"
    assert chat.last.new_tokens < 100
    ids = engine.tokenize_turns([question, said, "When?"], len(video.tokens))
    fresh = video.continuation(ids, video.prefix_copy(), 5)
    expected = engine.processor.tokenizer.decode(fresh, skip_special_tokens=True).strip()
    assert "".join(chat.say("When?", 5)).strip() == expected


def test_an_error_of_the_model_comes_out_and_leaves_the_conversation_as_it_was(video, monkeypatch):
    chat = video.chat()
    "".join(chat.say("Who?", 4))
    second = "".join(chat.say("When?", 4))
    again = video.chat()
    "".join(again.say("Who?", 4))

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(type(video), "_decode", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            "".join(again.say("When?", 4))
    assert len(again.turns) == 1
    assert "".join(again.say("When?", 4)) == second


def test_a_full_context_is_an_error_that_says_what_to_do_and_loses_nothing(video):
    chat = video.chat()
    "".join(chat.say("Who?", 4))
    before = list(chat.turns)
    with pytest.raises(SequenceTooLongError, match=rf"takes at most {MAX_LENGTH}\. Start a new conversation \(reset\)"):
        chat.say("x" * MAX_LENGTH)
    assert chat.turns == before
    "".join(chat.say("When?", 4))
    room = MAX_LENGTH - chat.num_tokens
    "".join(chat.say("y" * (room - 60)))  # an answer stops where the model's limit is
    assert chat.num_tokens <= MAX_LENGTH
    assert len(chat.turns) == 3


@pytest.mark.parametrize(
    ("question", "settings", "message"),
    [
        (" ", {}, "question is empty"),
        ("Who?", {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("Who?", {"num_beams": 2}, "num_beams is 2"),
    ],
)
def test_what_cannot_be_said_is_refused_at_once(video, question, settings, message):
    with pytest.raises(BimbaError, match=message):
        video.chat().say(question, **settings)


def test_a_compressor_that_reads_the_question_reads_the_first(video_file):
    engine = VideoQA(*conditioned_model())
    video = engine.encode(video_file)
    chat = video.chat()
    assert "".join(chat.say("Who?", 5)).strip() == video.ask("Who?", 5)
    said = [text for turn in chat.turns for text in turn]
    read = video.asked("Who?")
    ids = read.turn_ids([*said, "When?"])
    fresh = read.continuation(ids, read.prefix_copy(), 5)
    expected = engine.processor.tokenizer.decode(fresh, skip_special_tokens=True).strip()
    assert "".join(chat.say("When?", 5)).strip() == expected
