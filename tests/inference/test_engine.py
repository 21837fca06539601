"""The engine against the model: what is cached must never change an answer."""

from __future__ import annotations

import logging

import pytest
import torch
from tiny_checkpoint import MAX_LENGTH, NUM_FRAMES, tiny_model, write_video
from transformers import GenerationConfig
from transformers.utils import logging as logging_utils

import bimba.inference.engine as engine_module
from bimba.checkpoint import save_pretrained
from bimba.data.prompt import multiple_choice, open_ended, with_medium
from bimba.data.tokenize import tokenize_prompt
from bimba.inference import VideoQA
from bimba.model.splice import splice
from bimba.types import BimbaError, SequenceTooLongError, ShortVideoError, VideoDecodeError

QUESTIONS = ["Who scored?", "What happens after the goal?", "Who scored?", "And then?"]
OPTIONS = ["red", "green", "blue", "grey"]


def prompt_inputs(engine, video_file, prompt, num_frames=NUM_FRAMES):
    """What the whole model takes, built without the engine's caches."""
    pixels = engine.read(video_file, num_frames)
    conversation = [{"from": "human", "value": with_medium(prompt, newline=engine.processor.newline_after_medium)}]
    count = engine.processor.num_video_tokens(num_frames)
    ids = tokenize_prompt(conversation, engine.processor.tokenizer, [count])[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": [pixels]}


def generate_from_scratch(engine, video_file, prompt, max_new_tokens, **options):
    inputs = prompt_inputs(engine, video_file, prompt)
    end = engine.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    suppressed = [engine.processor.video_token_id]
    options = {"do_sample": False, "eos_token_id": end, "pad_token_id": end, "suppress_tokens": suppressed, **options}
    with torch.inference_mode():
        ids = engine.model.generate(**inputs, max_new_tokens=max_new_tokens, **options)
    new_ids = ids[0, inputs["input_ids"].shape[1] :]
    return engine.processor.tokenizer.decode(new_ids, skip_special_tokens=True).strip()


def test_ask_equals_generating_from_scratch_whatever_was_asked_before(engine, video_file):
    video = engine.encode(video_file)
    answers = [video.ask(question, 12) for question in QUESTIONS]
    assert answers == [generate_from_scratch(engine, video_file, question, 12) for question in QUESTIONS]
    assert len(set(answers)) == 3  # the model does listen to the question


def test_answers_depend_on_the_video(engine, video_file, tmp_path):
    other = write_video(tmp_path / "other.mp4", seed=1)
    assert engine.encode(video_file).ask("Who?", 12) != engine.encode(other).ask("Who?", 12)


def test_short_asks_with_the_words_of_training(engine, video_file):
    expected = generate_from_scratch(engine, video_file, open_ended("Who scored?"), 8)
    assert engine.encode(video_file).ask("Who scored?", 8, short=True) == expected


def test_the_checkpoint_says_whether_a_line_break_follows_the_video(video_file, tmp_path):
    model, processor = tiny_model()
    answers, lengths = {}, {}
    for newline in (True, False):
        model.config.newline_after_medium = processor.newline_after_medium = newline
        save_pretrained(model, processor, tmp_path / str(newline))
        engine = VideoQA.from_pretrained(tmp_path / str(newline), device="cpu")
        assert engine.model.config.newline_after_medium is newline
        video = engine.encode(video_file)
        answers[newline] = [video.ask(question, 12) for question in QUESTIONS]
        lengths[newline] = video.generate("Who scored?", 1).prompt_tokens
        assert answers[newline] == [generate_from_scratch(engine, video_file, question, 12) for question in QUESTIONS]
    assert answers[True] != answers[False]
    assert lengths[True] == lengths[False] + 1


def test_greedy_whatever_the_generation_config_says_but_for_its_repetition_penalty(video_file, caplog, monkeypatch):
    model, processor = tiny_model()
    video = VideoQA(model, processor).encode(video_file)
    without = video.generate("Who scored?", 12).text
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=3, top_p=0.5, num_beams=3, num_return_sequences=2, max_length=7
    )
    before = model.generation_config.to_dict()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logging_utils.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="transformers"):
        assert video.generate("Who scored?", 12).text == without
        assert video.generate("Who scored?", 12, num_beams=2).text
        assert video.generate("Who scored?", 12, do_sample=True, temperature=0.5).text
    assert caplog.messages == []
    assert model.generation_config.to_dict() == before
    model.generation_config = GenerationConfig(repetition_penalty=3.0, do_sample=True)
    expected = generate_from_scratch(video.engine, video_file, "Who scored?", 12, repetition_penalty=3.0)
    assert video.generate("Who scored?", 12).text == expected != without


def test_beam_search_equals_scratch_and_leaves_the_prefix_alone(engine, video_file):
    video = engine.encode(video_file)
    greedy = video.ask("Who scored?", 6)
    beams = video.generate("Who scored?", 6, num_beams=3).text

    inputs = prompt_inputs(engine, video_file, "Who scored?")
    with torch.inference_mode():
        embeddings = engine.model.get_input_embeddings()(inputs["input_ids"])
        placeholders = inputs["input_ids"] == engine.processor.video_token_id
        embeddings = splice(embeddings, placeholders, engine.model.encode_videos(inputs["pixel_values_videos"]))
        tokenizer = engine.processor.tokenizer
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        ids = engine.model.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=inputs["attention_mask"],
            max_new_tokens=6,
            num_beams=3,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            suppress_tokens=[engine.processor.video_token_id],
        )
    assert beams == tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    assert video.ask("Who scored?", 6) == greedy


def test_an_interrupted_answer_does_no_harm_to_the_next(engine, video_file, monkeypatch):
    video = engine.encode(video_file)
    expected = video.ask("Who scored?", 12)
    last_layer = engine.model.language_model.model.layers[-1]
    forward, calls = last_layer.forward, iter(range(4))

    def interrupted(*args, **kwargs):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(last_layer, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            video.ask("And then?", 12)
    lengths = {layer.get_seq_length() for layer in video.prefix.layers}
    assert len(lengths) == 2  # the first layer has seen a token more than the last
    assert video.ask("Who scored?", 12) == expected


def test_choose_gives_the_letters_probabilities(engine, video_file):
    choice = engine.encode(video_file).choose("Which colour?", OPTIONS)
    inputs = prompt_inputs(engine, video_file, multiple_choice("Which colour?", OPTIONS))
    with torch.inference_mode():
        logits = engine.model(**inputs).logits[0, -1]
    letters = [engine.processor.tokenizer.convert_tokens_to_ids(letter) for letter in "ABCD"]
    expected = torch.softmax(logits[letters].double(), dim=0)
    assert list(choice.probabilities) == list("ABCD")
    assert sum(choice.probabilities.values()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(
        torch.tensor(list(choice.probabilities.values()), dtype=torch.float64), expected, atol=1e-5, rtol=1e-4
    )
    assert choice.letter == "ABCD"[int(expected.argmax())]


def test_choose_takes_options_with_their_letters(engine, video_file):
    video = engine.encode(video_file)
    lettered = [f"{letter}. {option}" for letter, option in zip("ABCD", OPTIONS)]
    assert video.choose("Which colour?", lettered) == video.choose("Which colour?", OPTIONS)


def test_generation_counts_its_tokens(engine, video_file):
    video = engine.encode(video_file)
    generation = video.generate("Who scored?", 5)
    ids = prompt_inputs(engine, video_file, "Who scored?")["input_ids"]
    assert (generation.prompt_tokens, generation.new_tokens) == (ids.shape[1], 5)


def test_the_bytes_of_a_video_are_its_tokens_keys_and_values(engine, video_file):
    video = engine.encode(video_file)
    text = engine.model.config.text_config
    head_size = text.hidden_size // text.num_attention_heads
    keys_and_values = 2 * text.num_hidden_layers * text.num_key_value_heads * head_size * len(video.prefix_ids)
    assert video.num_bytes == 4 * (video.tokens.numel() + keys_and_values)


def test_a_video_is_read_once_until_its_file_changes(engine, tmp_path, monkeypatch):
    reads = []
    read_frames = engine_module.read_frames
    monkeypatch.setattr(engine_module, "read_frames", lambda *a, **k: (reads.append(a), read_frames(*a, **k))[1])
    path = write_video(tmp_path / "video.mp4")
    first = engine.encode(path)
    assert engine.encode(str(path)) is first
    assert len(reads) == 1
    assert engine.encode(path, num_frames=2) is not first
    assert len(reads) == 2
    write_video(path, num_frames=13, seed=1)
    assert engine.encode(path) is not first
    assert len(reads) == 3


def test_a_short_video_is_refused_unless_frames_may_repeat_and_the_cache_knows_which(engine, tmp_path):
    path = write_video(tmp_path / "short.mp4", num_frames=3)
    with pytest.raises(ShortVideoError, match=r"short\.mp4: 3 frames, and 4 were asked for"):
        engine.encode(path)
    video = engine.encode(path, short_videos="repeat")
    assert (video.num_frames, engine.encode(path, short_videos="repeat")) == (4, video)
    with pytest.raises(ShortVideoError):
        engine.encode(path)
    assert engine.encode(path, num_frames=3).num_frames == 3


def test_too_many_frames_are_refused_before_anything_is_decoded(engine):
    per_frame = engine.processor.num_video_tokens(2) - engine.processor.num_video_tokens(1)
    num_frames = MAX_LENGTH // per_frame + 1
    with pytest.raises(SequenceTooLongError, match=rf"{num_frames * per_frame} tokens.*{MAX_LENGTH}.*fewer frames"):
        engine.encode("no such file.mp4", num_frames=num_frames)


def test_a_prompt_that_is_too_long_names_both_lengths(engine, video_file):
    video = engine.encode(video_file)
    with pytest.raises(SequenceTooLongError, match=f"at most {MAX_LENGTH}.*fewer frames, a shorter question"):
        video.ask("why " * MAX_LENGTH)
    with pytest.raises(SequenceTooLongError, match=f"{MAX_LENGTH} for the answer"):
        video.ask("Why?", max_new_tokens=MAX_LENGTH)
    with pytest.raises(SequenceTooLongError):
        engine.check_prompt("why " * MAX_LENGTH, NUM_FRAMES)
    engine.check_prompt("Why?", NUM_FRAMES)


def test_the_default_answer_length_stops_at_the_models_limit(engine, video_file):
    room = 20
    padding = MAX_LENGTH - room - prompt_inputs(engine, video_file, "x")["input_ids"].shape[1]
    generation = engine.encode(video_file).generate("x" * (1 + padding))
    assert generation.prompt_tokens == MAX_LENGTH - room
    assert generation.new_tokens <= room


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(engine, video_file, question):
    video = engine.encode(video_file)
    with pytest.raises(BimbaError, match="empty"):
        video.ask(question)
    with pytest.raises(BimbaError, match="empty"):
        video.choose(question, OPTIONS)


@pytest.mark.parametrize("options", [["one"], ["x"] * 27])
def test_too_few_or_too_many_options_are_refused(engine, video_file, options):
    with pytest.raises(BimbaError, match=f"{len(options)} options"):
        engine.encode(video_file).choose("Which?", options)


def test_bad_numbers_are_refused(engine, video_file):
    with pytest.raises(BimbaError, match="num_frames is 0"):
        engine.encode(video_file, num_frames=0)
    with pytest.raises(BimbaError, match="max_new_tokens is 0"):
        engine.encode(video_file).ask("Who?", 0)


def test_a_missing_file_is_named(engine):
    with pytest.raises(VideoDecodeError, match=r"missing\.mp4"):
        engine.encode("missing.mp4")


def test_a_checkpoint_is_loaded_with_its_own_dtype_or_another(parts, video_file, tmp_path):
    save_pretrained(*parts, tmp_path / "checkpoint")
    engine = VideoQA.from_pretrained(tmp_path / "checkpoint", device="cpu")
    assert engine.model.dtype == torch.float32
    assert engine.encode(video_file).ask("Who?", 8) == VideoQA(*parts).encode(video_file).ask("Who?", 8)

    half = VideoQA.from_pretrained(str(tmp_path / "checkpoint"), device="cpu", dtype="bfloat16").encode(video_file)
    assert half.tokens.dtype == torch.bfloat16
    assert sum(half.choose("Which?", OPTIONS).probabilities.values()) == pytest.approx(1, abs=1e-12)
    assert half.ask("Who?", 4)


def test_every_setting_of_generate_can_be_given(engine, video_file):
    settings = {"eos_token_id": 10**6, "pad_token_id": 0, "suppress_tokens": None}
    assert engine.encode(video_file).generate("What?", 3, **settings).new_tokens == 3
