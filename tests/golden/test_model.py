"""The whole model against the original's numbers: same weights in, same answers out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bimba.checkpoint import load_pretrained
from bimba.checkpoint.keymap import to_ours
from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.queries import pool_queries
from bimba.model.vision import patch_features
from tests.golden.originals import BASE, TOLERANCE, deviation, model_inputs, read_case

WITH_LOSS = ["v56_tp1", "v56_tp2", "v70_tp1", "img56_small", "text_only", "batch_mixed_56"]
WITH_GREEDY = [
    "v56_tp1_generate",
    "v56_tp2_7frames",
    "v56_nocompressor_tp1",
    "v56_nocompressor_tp2",
    "text_only_generate",
    "img56_large",
    "img56_single_tile",
    "img56_square",
]
NEWLINES = ["v56_newline_frame", "v56_newline_one_token", "v56_newline_no_token"]
CASES = [*WITH_LOSS, *WITH_GREEDY, *NEWLINES]
WITH_COMPRESSOR = ["v56_tp1", "v56_tp2", "v70_tp1", "v56_tp1_generate", "v56_tp2_7frames", "batch_mixed_56", *NEWLINES]


def run(model: BimbaForConditionalGeneration, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
    """The model's outputs, and the (B, L, C) embeddings that its language model read."""
    read: list[Tensor] = []
    hook = model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    outputs = model(**inputs)
    hook.remove()
    return outputs, read[0]


@pytest.mark.parametrize("name", CASES)
def test_embeddings_and_logits(name: str) -> None:
    case = read_case(name)
    model, processor = case.model()
    inputs = model_inputs(case, processor)
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        outputs, embeddings = run(model, inputs)
    assert embeddings.shape == case["inputs_embeds"].shape
    assert deviation(embeddings[mask], case["inputs_embeds"][mask]) < TOLERANCE["inputs_embeds"]
    last = outputs.logits[torch.arange(len(mask)), mask.sum(1) - 1]
    expected = case.tensors.get("logits_at_last_valid", case["logits_last4"][:, -1])
    assert deviation(last, expected) < TOLERANCE["logits"]
    full = mask[:, -4:].all(1)  # the original's logits of padding are no one's
    assert deviation(outputs.logits[full, -4:], case["logits_last4"][full]) < TOLERANCE["logits"]


@pytest.mark.parametrize("name", WITH_LOSS)
def test_labels_and_loss(name: str) -> None:
    case = read_case(name)
    model, processor = case.model()
    inputs = model_inputs(case, processor)
    assert torch.equal(inputs["labels"], case["expanded.labels"])
    if "expanded.attention_mask" in case.tensors:
        assert torch.equal(inputs["attention_mask"].bool(), case["expanded.attention_mask"])
    with torch.no_grad():
        loss = model(**inputs).loss
    assert deviation(loss, case["loss"]) < TOLERANCE["loss"]


@pytest.mark.parametrize("name", WITH_GREEDY)
def test_greedy_text_is_the_same(name: str) -> None:
    """Also where the ids are those of the vocabulary's padding, or of our placeholders, which are among them."""
    case = read_case(name)
    model, processor = case.model()
    model.generation_config.eos_token_id = None
    inputs = model_inputs(case, processor)
    length = inputs["input_ids"].shape[1]
    expected = case["greedy_ids"]
    generated = model.generate(**inputs, max_new_tokens=expected.shape[1], do_sample=False, pad_token_id=0)
    assert torch.equal(generated[:, length:], expected)


@pytest.mark.parametrize("name", ["v56_tp1", "v70_tp1"])
def test_patch_features(name: str) -> None:
    """Of the vision tower, whose last layer the original drops, and of the projector."""
    case = read_case(name)
    model, _ = case.model()
    with torch.no_grad():
        features = patch_features(model.vision_tower, case.pixels(0))
        projected = model.projector(features)
    assert deviation(features.flatten(1, 2), case["mid.vision_tower_out"]) < TOLERANCE["vision_tower_out"]
    assert deviation(projected.flatten(1, 2), case["mid.projector_out"]) < TOLERANCE["projector_out"]


@pytest.mark.parametrize("name", WITH_COMPRESSOR)
def test_queries_and_what_the_compressor_makes_of_them(name: str) -> None:
    case = read_case(name)
    model, _ = case.model()
    with torch.no_grad():
        tokens = model.projector(patch_features(model.vision_tower, case.pixels(0)))[None]
        queries = pool_queries(tokens, model.config.reduction).flatten(2, 3)
        compressed = model.compressor(tokens, queries)
    assert deviation(queries, case["mid.pooled_queries"]) < TOLERANCE["pooled_queries"]
    assert deviation(compressed, case["mid.compressor_out"]) < TOLERANCE["compressor_out"]


@pytest.mark.parametrize("name", ["v56_tp1", "v56_tp2", "v70_tp1", "v56_nocompressor_tp1", "v56_nocompressor_tp2"])
def test_video_tokens_with_newlines(name: str) -> None:
    case = read_case(name)
    model, _ = case.model()
    with torch.no_grad():
        tokens = model.encode_video(case.pixels(0))
    expected = case["mid.video_tokens_with_newline"]
    assert deviation(tokens, expected) < TOLERANCE["video_tokens_with_newline"]


def test_gradients() -> None:
    case = read_case("v56_tp1")
    model, processor = case.model()
    model(**model_inputs(case, processor)).loss.backward()
    parameters = dict(model.named_parameters())
    expected = {name.removeprefix("grad."): x for name, x in case.tensors.items() if name.startswith("grad.")}
    assert len(expected) == 17 + 4 + 1  # compressor, projector, newline
    for name, gradient in expected.items():
        received = parameters[to_ours(name)].grad
        assert deviation(received, gradient) < TOLERANCE["gradient"] * gradient.abs().max(), name


@pytest.mark.parametrize("name", ["v56_nocompressor_tp1", "v56_nocompressor_tp2"])
def test_at_initialisation_bimba_is_llava_video(name: str) -> None:
    """A fresh compressor on the original's base, which has none: not one bit of the answer changes."""
    case = read_case(name)
    pooling = case.meta["temporal_pooling"]
    plain, processor = load_pretrained(BASE, temporal_pooling=pooling, compressor=None)
    bimba, _ = load_pretrained(BASE, temporal_pooling=pooling)  # the base of BIMBA gets its compressor
    assert plain.compressor is None and bimba.compressor is not None
    inputs = model_inputs(case, processor)
    with torch.no_grad():
        logits = bimba(**inputs).logits
        assert torch.equal(logits, plain(**inputs).logits)
    assert deviation(logits[:, -4:], case["logits_last4"]) < TOLERANCE["logits"]
