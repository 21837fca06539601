import numpy as np
import pytest
import torch

from bimba.data.needle import digit_bank
from bimba.training import probe
from bimba.training.probe import NeedleProbe, _clip
from bimba.types import BimbaError
from tests.training.fakes import NUM_FRAMES, FakeData, read_metrics, tiny_module, tiny_trainer


@pytest.fixture(scope="module")
def processor():
    return tiny_module().processor


def test_the_questions_are_the_same_in_every_run_and_their_letters_balanced(processor):
    clips = [_clip(number, ["retrieval", "counting"], processor) for number in range(8)]
    assert [clip.right for clip in clips] == [0, 1, 2, 3] * 2
    assert ["Which digit" in clip.prompt for clip in clips] == [True] * 4 + [False] * 4
    assert clips[0].frames.shape == (NUM_FRAMES, 96, 96, 3)
    again = _clip(0, ["retrieval"], processor)
    assert again.prompt == clips[0].prompt
    assert np.array_equal(again.frames, clips[0].frames)


def test_the_digits_are_held_out_of_training(processor, monkeypatch):
    asked = []
    monkeypatch.setattr(probe, "digit_bank", lambda split: asked.append(split) or digit_bank(split))
    _clip(0, ["retrieval"], processor)
    assert asked == ["test"]


def test_the_options_are_asked_for_as_the_model_is_asked(processor, monkeypatch):
    monkeypatch.setattr(processor, "newline_after_medium", False)
    assert _clip(0, ["retrieval"], processor).prompt.startswith("<image>Select the best answer")


def run(tmp_path, monkeypatch, answer):
    """A run whose model finds the letter ``answer(clip)`` likelier than the others."""
    module = tiny_module()
    letters = [module.processor.tokenizer.encode(letter)[0] for letter in "ABCD"]
    real, asked = module.model.forward, []

    def forward(*arguments, **inputs):
        output = real(*arguments, **inputs)
        if inputs.get("logits_to_keep") == 1 and not module.model.training:
            output.logits[..., letters] = 0.0
            output.logits[..., letters[answer(len(asked))]] = 2.0
            asked.append(inputs["input_ids"])
        return output

    monkeypatch.setattr(module.model, "forward", forward)
    tiny_trainer(tmp_path, 4, [NeedleProbe(every_n_steps=2, clips=4)]).fit(module, FakeData(module.processor))
    assert module.model.training
    assert len(asked) == 8
    assert all(torch.equal(first, second) for first, second in zip(asked[:4], asked[4:], strict=True))
    return read_metrics(tmp_path)


def test_the_score_is_the_share_of_right_letters(tmp_path, monkeypatch):
    likely, other = np.exp(2) / (np.exp(2) + 3), 1 / (np.exp(2) + 3)
    right = run(tmp_path / "right", monkeypatch, lambda number: number % 4)
    assert right["needle/score"] == [1.0, 1.0]
    assert right["needle/probability"] == pytest.approx([likely] * 2, rel=1e-4)
    always_b = run(tmp_path / "b", monkeypatch, lambda number: 1)
    assert always_b["needle/score"] == [0.25, 0.25]
    assert always_b["needle/probability"] == pytest.approx([(likely + 3 * other) / 4] * 2, rel=1e-4)


def test_the_probe_leaves_training_as_it_was(tmp_path):
    def weights(callbacks):
        module = tiny_module(lr=1e-2, model={"lora": {**LORA, "dropout": 0.5}})
        torch.manual_seed(1)
        tiny_trainer(tmp_path, 3, callbacks).fit(module, FakeData(module.processor))
        return [weight.detach() for weight in module.parameters() if weight.requires_grad]

    from tests.training.fakes import LORA

    for with_probe, without in zip(weights([NeedleProbe(1, clips=1)]), weights([]), strict=True):
        assert torch.equal(with_probe, without)


@pytest.mark.parametrize("wrong", [{"clips": 0}, {"tasks": ["reading"]}, {"tasks": []}])
def test_wrong_settings_are_explained(wrong):
    with pytest.raises(BimbaError, match=f"callbacks.needle_probe.{next(iter(wrong))}"):
        NeedleProbe(**wrong)
