"""The question that a video is compressed for: found in the prompt, without any word of an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoint import IMAGE_SIZE, NUM_FRAMES, conditioned_model
from torch import Tensor

from bimba.checkpoint import load_pretrained, save_pretrained
from bimba.data.recipe import RECIPES
from bimba.data.tokenize import tokenize_conversation
from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.types import BimbaError

TURNS = [
    {"from": "human", "value": "<image>\nWho scored?"},
    {"from": "gpt", "value": "Number 7."},
    {"from": "human", "value": "When?"},
    {"from": "gpt", "value": "Late."},
]


@pytest.fixture(scope="module")
def parts() -> Any:
    return conditioned_model()


def video(seed: int = 0, frames: int = NUM_FRAMES) -> Tensor:
    return torch.randn(frames, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def ids_of(parts: Any, turns: list[dict[str, str]], frames: tuple[int, ...] = (NUM_FRAMES,), **options: Any) -> Tensor:
    counts = [parts[1].num_video_tokens(number) for number in frames]
    return tokenize_conversation(turns, parts[1].tokenizer, counts, **options)["input_ids"][None]


def words(parts: Any, ids: Tensor, frames: tuple[int, ...] = (NUM_FRAMES,)) -> list[str]:
    return [parts[1].tokenizer.decode(question) for question in parts[0].questions(ids, frames)]


@pytest.mark.parametrize("recipe", ["default", "original"])
def test_the_question_is_the_first_turn_and_no_word_of_an_answer_or_of_later_turns(parts: Any, recipe: str) -> None:
    ids = ids_of(parts, TURNS, recipe=RECIPES[recipe])
    assert words(parts, ids) == ["user\n\nWho scored?"]
    (expected,) = parts[0].encode_videos_in(ids, [video()])
    behind = int((ids[0] == parts[0].config.video_token_id).nonzero().max()) + 1 + len("\nWho scored?") + 1
    scrambled = ids.clone()
    scrambled[0, behind:] = ids[0, behind:].flip(0)
    (same,) = parts[0].encode_videos_in(scrambled, [video()])
    assert torch.equal(same, expected)
    scrambled[0, behind - 3] += 1
    (other,) = parts[0].encode_videos_in(scrambled, [video()])
    assert not torch.allclose(other, expected)


def test_several_videos_rows_of_a_batch_and_words_before_the_video(parts: Any) -> None:
    two = ids_of(parts, [{"from": "human", "value": "First <image><image> or?"}, *TURNS[1:]], (4, 3))
    assert words(parts, two, (4, 3)) == ["user\nFirst  or?"] * 2
    later = ids_of(parts, [*TURNS[:2], {"from": "human", "value": "<image>And here?"}, TURNS[3]], (4, 3))
    assert words(parts, later, (4, 3)) == ["user\n\nWho scored?", "user\nAnd here?"]
    pad = torch.zeros(1, later.shape[1] - two.shape[1], dtype=torch.int64)
    batch = torch.cat([torch.cat([pad, two], dim=1), later])
    assert words(parts, batch, (4, 3, 4, 3)) == words(parts, two, (4, 3)) + words(parts, later, (4, 3))
    videos = [video(i, frames) for i, frames in enumerate((4, 3, 4, 3))]
    questions = parts[0].questions(batch, [4, 3, 4, 3])
    assert parts[0].passes(videos[:2] * 2, questions[:2] * 2) == [[0, 2], [1, 3]]
    with torch.no_grad():
        together = parts[0].encode_videos_in(batch, videos)
        for tokens, one, question in zip(together, videos, questions, strict=True):
            torch.testing.assert_close(tokens, parts[0].encode_video(one, question), rtol=1e-4, atol=1e-4)


def test_generation_and_the_whole_forward_need_nothing_but_the_prompt(parts: Any) -> None:
    model, processor = parts
    answers = []
    for question in ("Who scored?", "What then?"):
        text = f"<|im_start|>user\n<video>{question}<|im_end|>\n<|im_start|>assistant\n"
        inputs = processor(text, [np.full((NUM_FRAMES, 8, 8, 3), 99, np.uint8)])
        cached, anew = (
            model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0, use_cache=use_cache)
            for use_cache in (True, False)
        )
        assert torch.equal(cached, anew)
        tokens = model.encode_videos_in(inputs["input_ids"], inputs["pixel_values_videos"])
        embeddings = model.embed(inputs["input_ids"], tokens, [])
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits, model(inputs_embeds=embeddings).logits)
        answers.append(tokens[0])
    assert not torch.allclose(*answers)


def test_words_keep_their_embeddings_and_the_compressor_learns(parts: Any) -> None:
    model: BimbaForConditionalGeneration = parts[0]
    model.zero_grad()
    model.encode_video(video(), torch.tensor([1, 2]))[::2].sum().backward()
    assert model.get_input_embeddings().weight.grad is None
    assert model.compressor.layers[0].mixer.in_proj.weight.grad.any()
    model.zero_grad()


def test_what_is_missing_is_explained(parts: Any) -> None:
    model, processor = parts
    with pytest.raises(BimbaError, match=r"received none. Give its ids: encode_video\(pixels, model.questions"):
        model.encode_video(video())
    with pytest.raises(BimbaError, match="received an empty one"):
        model.encode_video(video(), torch.tensor([], dtype=torch.int64))
    with pytest.raises(BimbaError, match="Got 1 videos and 0 questions"):
        model.encode_videos([video()], [])
    with pytest.raises(BimbaError, match=r"video placeholder tokens, but its 1 video\(s\) make 24 tokens"):
        model(input_ids=ids_of(parts, TURNS, (3,)), pixel_values_videos=[video()])
    bare = processor(f"{processor.video_token * processor.num_video_tokens(4)}Who?")["input_ids"]
    with pytest.raises(BimbaError, match="Write the prompt in Qwen2's chat format"):
        model(input_ids=bare, pixel_values_videos=[video()])
    config = model.config.from_dict({**model.config.to_dict(), "compressor": None})
    with pytest.raises(BimbaError, match="question_conditioned is false"):
        BimbaForConditionalGeneration(config).encode_video(video(), torch.tensor([1]))


def test_a_checkpoint_remembers_that_it_reads_questions(parts: Any, tmp_path: Any) -> None:
    save_pretrained(*parts, tmp_path / "checkpoint")
    ids = ids_of(parts, TURNS)
    for model in (
        load_pretrained(tmp_path / "checkpoint")[0],
        BimbaForConditionalGeneration.from_pretrained(tmp_path / "checkpoint"),
    ):
        assert model.question_conditioned
        with torch.no_grad():
            torch.testing.assert_close(
                model.encode_videos_in(ids, [video()]), parts[0].encode_videos_in(ids, [video()]), rtol=0, atol=0
            )
