"""Equal models have one name; anything that changes an answer gives another."""

from __future__ import annotations

import pytest
import torch
from tiny_checkpoint import tiny_model

import bimba.inference.fingerprint as module
from bimba.inference.fingerprint import fingerprint


def test_equal_models_have_one_name(monkeypatch):
    name = fingerprint(*tiny_model())
    assert name == fingerprint(*tiny_model())
    assert len(name) == 64
    monkeypatch.setattr(module, "_CHUNK", 100)  # sums do not depend on how they are cut
    assert name == fingerprint(*tiny_model())


@pytest.mark.parametrize("part", ["vision_tower", "projector", "language_model"])
def test_one_bit_of_one_weight_is_another_name(part):
    model, processor = tiny_model()
    before = fingerprint(model, processor), fingerprint(model, processor, of_tokens=True)
    weight = next(getattr(model, part).parameters())
    with torch.no_grad():
        weight.view(-1).view(torch.int32)[-1] ^= 1
    after = fingerprint(model, processor), fingerprint(model, processor, of_tokens=True)
    assert after[0] != before[0]
    assert (after[1] == before[1]) is (part == "language_model")


def test_weights_that_change_places_are_another_name():
    model, processor = tiny_model()
    before = fingerprint(model, processor)
    weight = next(weight for weight in model.projector.parameters() if weight.dim() > 1)
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    assert fingerprint(model, processor) != before


def test_settings_count():
    model, processor = tiny_model()
    names = {fingerprint(model, processor)}
    processor.newline_after_medium = False
    names.add(fingerprint(model, processor))
    model.generation_config.repetition_penalty = 1.5
    names.add(fingerprint(model, processor))
    processor.image_processor.do_rescale = False
    names.add(fingerprint(model, processor))
    names.add(fingerprint(model.bfloat16(), processor))
    assert len(names) == 5
