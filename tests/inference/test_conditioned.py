"""A video whose compressor reads the question: decoded and seen once, compressed for each question, as in training."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import NUM_FRAMES, conditioned_model, tiny_model

import bimba.inference.engine as engine_module
from bimba.data.dataset import VideoQADataset
from bimba.data.prompt import multiple_choice, with_medium
from bimba.data.tokenize import tokenize_prompt
from bimba.inference import ConditionedVideo, Question, VideoQA
from bimba.inference.schedule import Work
from bimba.inference.store import TokenStore
from bimba.types import BimbaError, SequenceTooLongError

OPTIONS = ["red", "green", "blue", "grey"]
PROMPTS = ["Who?", "What happens after the goal?", multiple_choice("Which?", OPTIONS)]


@pytest.fixture(scope="module")
def parts() -> Any:
    return conditioned_model()


@pytest.fixture
def engine(parts: Any) -> VideoQA:
    return VideoQA(*parts)


@pytest.fixture
def calls(parts: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a video is decoded, seen and compressed; by questions also what the compressor was given."""
    counter: Counter[str] = Counter()
    read_frames = engine_module.read_frames
    monkeypatch.setattr(
        engine_module, "read_frames", lambda *a, **k: (counter.update(["decoded"]), read_frames(*a, **k))[1]
    )
    hooks = [
        part.register_forward_pre_hook(lambda *_, name=name: counter.update([name]))
        for name, part in (("seen", parts[0].vision_tower.encoder), ("projected", parts[0].projector))
    ]
    hooks.append(parts[0].compressor.register_forward_pre_hook(lambda *_: counter.update(["compressed"])))
    yield counter
    for hook in hooks:
        hook.remove()


def from_scratch(engine: VideoQA, video_file: Path, prompt: str, max_new_tokens: int) -> str:
    """The answer of the whole model, without the engine's caches."""
    processor = engine.processor
    turns = [{"from": "human", "value": with_medium(prompt, newline=processor.newline_after_medium)}]
    ids = tokenize_prompt(turns, processor.tokenizer, [processor.num_video_tokens(NUM_FRAMES)])[None]
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.inference_mode():
        out = engine.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=[engine.read(video_file)],
            max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end, pad_token_id=end,
            suppress_tokens=[processor.video_token_id],
        )  # fmt: skip
    return processor.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_each_question_is_compressed_for_and_the_video_is_read_once(engine, video_file, calls) -> None:
    expected = [from_scratch(engine, video_file, prompt, 8) for prompt in PROMPTS]
    calls.clear()
    answers = [engine.encode(video_file).ask(prompt, 8) for prompt in PROMPTS]
    assert answers == expected
    assert calls == {"decoded": 1, "seen": 1, "projected": 1, "compressed": 3}
    video = engine.encode(video_file)
    assert isinstance(video, ConditionedVideo)
    assert video.num_bytes == engine.cache.num_bytes == 4 * NUM_FRAMES * 4 * 4 * 32
    tokens = [video.asked(prompt).tokens for prompt in PROMPTS]
    assert not torch.allclose(tokens[0], tokens[1])
    choice = video.choose("Which?", OPTIONS)
    assert sum(choice.probabilities.values()) == pytest.approx(1)
    assert choice == video.choose_letter(PROMPTS[2], 4)


def test_many_questions_alone_in_a_batch_and_from_the_store(parts, video_file, calls, tmp_path) -> None:
    questions = [Question(str(video_file), prompt, max_new_tokens=8) for prompt in PROMPTS]
    questions.append(Question(str(video_file), PROMPTS[2], num_options=4))
    alone = VideoQA(*parts).answer_all(questions)
    assert len({answer.text for answer in alone}) > 2
    stored = TokenStore(tmp_path)
    for expected_calls in ({"decoded": 1, "seen": 1, "projected": 1, "compressed": 4}, {"compressed": 4}):
        calls.clear()
        work = Work()
        together = VideoQA(*parts, store=stored).answer_all(questions, batch_questions=True, work=work)
        assert together == alone
        assert calls == expected_calls
        assert work.answered == 4


@pytest.mark.parametrize("make", [conditioned_model, tiny_model])
def test_what_the_store_holds_has_room_when_it_is_read_ahead(make, video_file, tmp_path, monkeypatch) -> None:
    engine = VideoQA(*make(), store=TokenStore(tmp_path))
    key = engine.identify(video_file)
    assert engine.loaded_bytes(key) >= engine.load(key).values.nbytes
    engine.encode(video_file)
    monkeypatch.setattr(engine.processor.image_processor, "size", {"height": 1, "width": 1})  # as with large models
    assert engine.loaded_bytes(key) == engine.store.get(engine._stored_name(key))[0].nbytes


@pytest.mark.parametrize("options", [None, OPTIONS])
def test_training_and_asking_condition_on_the_same_ids(engine, video_file, tmp_path, options) -> None:
    asked = "What is it?" if options is None else multiple_choice("Which?", options)
    rows = [
        {
            "id": "0",
            "video": video_file.name,
            "conversations": [
                {"from": "human", "value": with_medium(asked, newline=engine.processor.newline_after_medium)},
                {"from": "gpt", "value": "B"},
            ],
        }
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = VideoQADataset(tmp_path / "rows.json", video_file.parent, engine.processor, NUM_FRAMES, 512)
    sample = data[0]
    (trained,) = engine.model.questions(sample["input_ids"][None], [NUM_FRAMES])

    seen = []
    compress = engine.model.compress
    engine.model.compress = lambda tokens, questions: seen.append(questions) or compress(tokens, questions)
    try:
        video = engine.encode(video_file)
        video.ask(asked, 1) if options is None else video.choose("Which?", options)
        engine.model.encode_videos_in(sample["input_ids"][None], sample["pixel_values_videos"])
    finally:
        del engine.model.compress
    assert [ids.tolist() for ids in seen] == [[trained.tolist()]] * 2
    assert engine.processor.tokenizer.decode(trained) == f"user\n\n{asked}"


def test_what_cannot_be_asked(engine, video_file, calls) -> None:
    video = engine.encode(video_file)
    for ask in (lambda: video.ask("  "), lambda: video.ask("", short=True), lambda: video.choose("", OPTIONS)):
        with pytest.raises(BimbaError, match="The question is empty"):
            ask()
    with pytest.raises(SequenceTooLongError):
        video.ask("why " * 500)
    with pytest.raises(BimbaError, match="Ask these prompts one at a time"):
        video.generate_batch(PROMPTS, 4, num_beams=2)
    assert calls["compressed"] == 0
