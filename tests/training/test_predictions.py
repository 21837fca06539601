import json

import numpy as np
import pytest
import torch
from PIL import Image

from bimba.data.collate import collate
from bimba.data.recipe import recipe_named
from bimba.data.tokenize import tokenize_conversation
from bimba.training.predictions import SamplePredictions, _questions
from bimba.types import BimbaError
from tests.training.fakes import IMAGE_SIZE, NUM_FRAMES, FakeData, tiny_module, tiny_trainer


def written(run_dir):
    return {
        int(path.parent.name.removeprefix("step_")): [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((run_dir / "examples/predictions").glob("*/examples.jsonl"))
    }


def test_the_same_samples_are_asked_at_each_validation_and_their_frames_are_shown(tmp_path):
    module = tiny_module("full", lr=1e-2, schedule="constant")
    trainer = tiny_trainer(tmp_path, 40, [SamplePredictions(samples=2, max_new_tokens=3)], val_check_interval=20)
    trainer.fit(module, FakeData(module.processor, length=40))
    assert module.model.training
    runs = written(tmp_path)
    assert list(runs) == [19, 39]
    for rows in runs.values():
        assert [row["question"] for row in rows] == ["Which?", "Which?"]
        assert [row["answer"] for row in rows] == ["A", "B"]
    assert [row["prediction"] for row in runs[39]] == ["A", "B"]  # it has learned to tell black from white
    black, white = (
        np.asarray(Image.open(tmp_path / "examples/predictions/step_000039" / row["frames"])) for row in runs[39]
    )
    assert black.shape == (IMAGE_SIZE, NUM_FRAMES * IMAGE_SIZE, 3)
    # SigLIP's processor maps 0..1 to -1..1, so the pixels 0 to 0.1 of FakeVideos are a middle grey.
    assert black.mean() == pytest.approx(0.525 * 255, abs=2)
    assert white.mean() == pytest.approx(255, abs=1)


def test_what_is_generated_is_what_the_model_generates(tmp_path):
    module = tiny_module(lr=0.0)
    trainer = tiny_trainer(
        tmp_path, 4, [SamplePredictions(samples=1, max_new_tokens=5)]
    )  # validates after an epoch of 4
    data = FakeData(module.processor)
    trainer.fit(module, data)
    batch = next(iter(data.val_dataloader()))
    header = module.processor.tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    ids = batch["input_ids"][0].tolist()
    end = next(i for i in range(len(ids)) if ids[i : i + len(header)] == header) + len(header)
    with torch.no_grad():
        answer = module.model.eval().generate(
            input_ids=batch["input_ids"][:1, :end],
            attention_mask=torch.ones(1, end, dtype=torch.int64),
            pixel_values_videos=batch["pixel_values_videos"][:1],
            max_new_tokens=5,
            do_sample=False,
        )
    (rows,) = written(tmp_path).values()
    assert rows[0]["prediction"] == module.processor.tokenizer.decode(answer[0, end:], skip_special_tokens=True)


@pytest.mark.parametrize("recipe", ["default", "original"])
def test_questions_of_texts_several_videos_and_several_turns(recipe):
    processor = tiny_module().processor
    count = processor.num_video_tokens(NUM_FRAMES)

    def sample(turns, videos):
        whose = [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(turns)]
        tokens = tokenize_conversation(whose, processor.tokenizer, [count] * videos, recipe=recipe_named(recipe))
        pixels = [torch.full((NUM_FRAMES, 3, IMAGE_SIZE, IMAGE_SIZE), float(videos)) for _ in range(videos)]
        return {**tokens, "pixel_values_videos": pixels}

    samples = [
        sample(["Hello?", "Yes."], 0),
        sample(["<image>\nFirst?", "One.", "Second?", "Two."], 1),
    ]
    if recipe == "default":
        samples.insert(1, sample(["<image>\n<image>\nWhich is longer?", "Both."], 2))
    found = list(_questions(collate(samples, pad_token_id=0), processor))
    assert [one.question for one in found] == [
        "Hello?",
        *(["Which is longer?"] if recipe == "default" else []),
        "First?",
    ]
    assert [one.answer for one in found][-1] == "One."
    assert [float(video.mean()) for one in found for video in one.videos] == (
        [2.0, 2.0, 1.0] if recipe == "default" else [1.0]
    )


def test_samples_come_from_as_many_batches_as_it_takes(tmp_path):
    module = tiny_module()
    data = FakeData(module.processor, batch_size=1, val_bad=[1])
    tiny_trainer(tmp_path, 8, [SamplePredictions(samples=3, max_new_tokens=1)]).fit(module, data)
    (rows,) = written(tmp_path).values()
    assert [row["answer"] for row in rows] == ["A", "A", "B"]  # samples 0, 2 and 3


def test_bad_samples_and_none_asked_for(tmp_path):
    module = tiny_module()
    tiny_trainer(tmp_path, 4, [SamplePredictions()]).fit(module, FakeData(module.processor, val_bad=range(8)))
    tiny_trainer(tmp_path, 4, [SamplePredictions(samples=0)]).fit(module, FakeData(module.processor))
    assert not written(tmp_path)
    tiny_trainer(tmp_path, 4, [SamplePredictions(samples=1)]).fit(module, FakeData(module.processor))
    assert written(tmp_path)


@pytest.mark.parametrize("wrong", [{"samples": -1}, {"max_new_tokens": 0}, {"frames": 0}, {"height": 0}])
def test_wrong_settings_are_explained(wrong):
    with pytest.raises(BimbaError, match=f"callbacks.predictions.{next(iter(wrong))}"):
        SamplePredictions(**wrong)


def test_large_frames_are_shown_small():
    processor = tiny_module().processor
    shown = SamplePredictions(frames=2, height=8)._shown([torch.rand(NUM_FRAMES, 3, 32, 32)], processor)
    assert shown.shape == (2, 8, 8, 3)
    assert shown.dtype == np.uint8
