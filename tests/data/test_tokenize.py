from __future__ import annotations

import pytest
from tiny_checkpoint import ascii_tokenizer

from bimba.data.tokenize import IGNORE_INDEX, tokenize_conversation, tokenize_prompt
from bimba.types import BimbaError, SequenceTooLongError

CONVERSATION = [
    {"from": "human", "value": "<image>\nWho scored?"},
    {"from": "gpt", "value": "Number 7."},
    {"from": "human", "value": "When?"},
    {"from": "gpt", "value": "Late."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return ascii_tokenizer()


def test_the_whole_text_is_qwens_chat(tokenizer):
    sample = tokenize_conversation(CONVERSATION, tokenizer, [3])
    assert tokenizer.decode(sample["input_ids"]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|video_pad|><|video_pad|><|video_pad|>\nWho scored?<|im_end|>\n"
        "<|im_start|>assistant\nNumber 7.<|im_end|>\n"
        "<|im_start|>user\nWhen?<|im_end|>\n"
        "<|im_start|>assistant\nLate.<|im_end|>\n"
    )


def test_only_what_the_assistant_says_is_trained_on(tokenizer):
    sample = tokenize_conversation(CONVERSATION, tokenizer, [3])
    trained = sample["labels"] != IGNORE_INDEX
    assert tokenizer.decode(sample["labels"][trained]) == "Number 7.<|im_end|>Late.<|im_end|>"
    assert (sample["labels"][trained] == sample["input_ids"][trained]).all()


def test_a_prompt_is_the_beginning_of_its_training_sample(tokenizer):
    sample = tokenize_conversation(CONVERSATION, tokenizer, [3])
    for turns in (1, 3):
        prompt = tokenize_prompt(CONVERSATION[:turns], tokenizer, [3])
        assert (sample["input_ids"][: len(prompt)] == prompt).all()
        assert sample["labels"][len(prompt)] != IGNORE_INDEX


def test_too_long(tokenizer):
    length = len(tokenize_conversation(CONVERSATION, tokenizer, [3])["input_ids"])
    tokenize_conversation(CONVERSATION, tokenizer, [3], max_length=length)
    with pytest.raises(
        SequenceTooLongError, match=rf"{length} tokens long \(3 of them video\); the limit is {length - 1}"
    ):
        tokenize_conversation(CONVERSATION, tokenizer, [3], max_length=length - 1)


@pytest.mark.parametrize(
    ("counts", "message"), [([], "more <image> tags than media"), ([3, 3], "1 media have no <image>")]
)
def test_tags_and_media_must_match(tokenizer, counts, message):
    with pytest.raises(BimbaError, match=message):
        tokenize_conversation(CONVERSATION, tokenizer, counts)


def test_unknown_speaker(tokenizer):
    with pytest.raises(BimbaError, match="from 'robot'; expected 'human' or 'gpt'"):
        tokenize_conversation([{"from": "robot", "value": "beep"}], tokenizer, [])


def test_a_turn_without_words(tokenizer):
    with pytest.raises(BimbaError, match="from 'human'.* and text, not None"):
        tokenize_conversation([{"from": "human"}], tokenizer, [])


def test_turns_of_the_system_are_not_trained_on(tokenizer):
    sample = tokenize_conversation([{"role": "system", "content": "Be brief."}, *CONVERSATION], tokenizer, [3])
    assert "<|im_start|>system\nBe brief.<|im_end|>\n" in tokenizer.decode(sample["input_ids"])
    assert "brief" not in tokenizer.decode(sample["labels"][sample["labels"] != IGNORE_INDEX])


def test_markup_in_somebodys_words_is_just_words(tokenizer):
    rude = [{"from": "human", "value": "<image>\nWhat is <|im_end|> or <|video_pad|>?"}]
    ids = tokenize_prompt(rude, tokenizer, [3])
    special = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|video_pad|>")}
    assert (ids == special["<|video_pad|>"]).sum() == 3
    assert (ids == special["<|im_end|>"]).sum() == 2  # of the system's and the user's turn
