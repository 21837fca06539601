from functools import partial
from pathlib import Path

import pytest
import torch

from bimba.checkpoint import load_pretrained, save_pretrained
from bimba.data.collate import collate
from bimba.data.recipe import RECIPES
from bimba.data.tokenize import tokenize_conversation
from bimba.training import (
    BimbaModule,
    ModelSettings,
    accumulation_steps,
    ask_as_in,
    build_model,
    outline_model,
    samples_per_pass,
)
from bimba.training.optim import OptimizerSettings
from bimba.training.stream import to_meta
from bimba.training.trainable import part_of, set_trainable
from bimba.types import BimbaError
from tests.training.fakes import IMAGE_SIZE, LORA, SIZES, FakeData, model_node, tiny_model

MAMBA = {"name": "mamba", "d_state": 4}
TOWER_LORA = {**LORA, "vision_tower": True}
ADAPTER = Path(__file__).parents[1] / "golden/model/lora/bimba-lora-qwen-ckpt"
BASE = ADAPTER.parents[1] / "ckpt_56_base_nocompressor"
POOLED = {**SIZES, "temporal_pooling": 2}


def build(checkpoint=None, base=None, **changes):
    return build_model(ModelSettings.from_node(model_node(**changes)), checkpoint, base)


def test_a_new_model_has_the_sizes_and_a_processor_that_fits():
    model, processor = build(compressor=MAMBA, config=POOLED)
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert model.config.video_token_id == processor.video_token_id
    assert model.compressor.layers[0].mixer.A_log.shape[1] == 4
    frames = torch.zeros(4, 48, 64, 3, dtype=torch.uint8).numpy()
    tokens = model.encode_video(processor.pixel_values(frames))
    assert len(tokens) == processor.num_video_tokens(4)


def test_a_checkpoint_is_loaded_with_the_compressor_and_pooling_of_the_configuration(tmp_path):
    base, processor = tiny_model()
    save_pretrained(base, processor, tmp_path / "base")
    model, processor = build(str(tmp_path / "base"), compressor=MAMBA, config=POOLED)
    assert torch.equal(model.projector[0].weight, base.projector[0].weight)
    assert model.config.temporal_pooling == processor.temporal_pooling == 2
    assert model.compressor is not None
    again, _ = build(str(tmp_path / "base"), config={**SIZES, "num_frames": 6})
    assert again.config.num_frames == 6


def test_an_option_that_is_null_is_as_the_checkpoint_says(tmp_path):
    base, processor = tiny_model(config=POOLED)
    save_pretrained(base, processor, tmp_path / "base")
    unsaid = {**SIZES, "temporal_pooling": None}
    model, processor = build(str(tmp_path / "base"), config=unsaid)
    assert model.config.temporal_pooling == processor.temporal_pooling == 2
    model, processor = build(config=unsaid)
    assert model.config.temporal_pooling == processor.temporal_pooling == 1


def sizes_of_the_base():
    """Of the golden adapter's base, as conf/model has the 7B one's: the vocabulary with its padding."""
    config = load_pretrained(BASE)[0].config
    return {
        "num_frames": 4,
        "temporal_pooling": None,
        "newline_position": "grid",
        "vision_config": {key: getattr(config.vision_config, key) for key in SIZES["vision_config"]},
        "text_config": {key: getattr(config.text_config, key) for key in ("vocab_size", *SIZES["text_config"])},
    }


def test_training_starts_from_an_adapter_and_its_base():
    model, processor = build(str(ADAPTER), base=str(BASE), compressor={"name": "mamba"}, config=sizes_of_the_base())
    assert (sizes_of_the_base()["text_config"]["vocab_size"], model.config.text_config.vocab_size) == (416, 403)
    merged, _ = load_pretrained(ADAPTER, base=BASE)
    for name, weight in merged.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    set_trainable(model, "lora", LORA)
    question = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "A"}]
    sample = tokenize_conversation(question, processor.tokenizer, [processor.num_video_tokens(4)])
    assert sample["input_ids"].max() >= 403  # a placeholder without a row
    batch = collate([{**sample, "pixel_values_videos": [torch.randn(4, 3, 56, 56)]}], pad_token_id=0)
    BimbaModule(model, processor, OptimizerSettings(lr=1e-3))(batch).losses.mean().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("compressor" in name for name in trained) and any("lora" in name for name in trained)


def test_a_base_is_for_an_adapter(tmp_path):
    with pytest.raises(BimbaError, match=r"base=somewhere is the base of an adapter.*give checkpoint=<adapter>"):
        build(base="somewhere")
    save_pretrained(*tiny_model(), tmp_path / "base")
    with pytest.raises(BimbaError, match=r"is no adapter.*takes no base=somewhere"):
        build(str(tmp_path / "base"), base="somewhere")


@pytest.mark.parametrize(("recipe", "newline"), [("default", True), ("original", False)])
def test_a_trained_model_is_asked_as_its_recipe_says(recipe, newline, tmp_path):
    model, processor = build()
    ask_as_in(RECIPES[recipe], model, processor)
    save_pretrained(model, processor, tmp_path / "trained")
    model, processor = load_pretrained(tmp_path / "trained")
    assert (model.config.newline_after_medium, processor.newline_after_medium) == (newline, newline)


def test_a_checkpoint_of_other_sizes_is_an_error_that_names_them(tmp_path):
    save_pretrained(*tiny_model(), tmp_path / "base")
    other = {**SIZES, "text_config": {**SIZES["text_config"], "num_hidden_layers": 3}}
    with pytest.raises(BimbaError, match=r"text_config\.num_hidden_layers: checkpoint 2, model.config 3"):
        build(str(tmp_path / "base"), config=other)


def test_no_such_checkpoint(tmp_path):
    with pytest.raises(BimbaError, match="nowhere"):
        build(str(tmp_path / "nowhere"))


def gradients(gradient_checkpointing, tuning, lora=LORA):
    torch.manual_seed(0)
    changes = {"gradient_checkpointing": gradient_checkpointing, "compressor": MAMBA, "tuning": tuning, "lora": lora}
    model, processor = build(**changes)
    set_trainable(model, tuning, lora)
    torch.manual_seed(1)
    pixels = torch.randn(4, 3, IMAGE_SIZE, IMAGE_SIZE)
    ids = torch.full((1, processor.num_video_tokens(4) + 3), processor.video_token_id)
    ids[0, -3:] = torch.tensor([5, 6, 7])
    model.train()(input_ids=ids, labels=ids, pixel_values_videos=[pixels], use_cache=False).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("kind", "tuning", "lora"),
    [
        (True, "full", None),
        (True, "lora", LORA),
        (True, "lora", TOWER_LORA),
        ("reentrant", "full", None),
        ("reentrant", "lora", LORA),
    ],
)
def test_gradient_checkpointing_changes_no_gradient(kind, tuning, lora):
    plain, checkpointed = gradients(False, tuning, lora), gradients(kind, tuning, lora)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_reentrant_kind_cuts_the_adapters_of_the_vision_tower_off_and_says_so(caplog):
    plain = gradients(True, "lora", TOWER_LORA)
    assert "get no gradient" not in caplog.text
    cut = plain.keys() - gradients("reentrant", "lora", TOWER_LORA).keys()
    assert cut == {name for name in plain if part_of(name) == "vision_lora"} != set()
    assert "The adapters of the vision tower get no gradient" in caplog.text


def test_checkpointing_reaches_the_tower_only_where_it_is_trained():
    def layers(**changes):
        model, _ = build(gradient_checkpointing=True, **changes)
        return model.vision_tower.encoder.layers[0].gradient_checkpointing

    assert not layers()
    assert layers(lora=TOWER_LORA)
    assert layers(tuning="full", lora=None)


def test_older_names_of_transformers_are_read():
    text = {**SIZES["text_config"], "rope_theta": 123.0}
    model, _ = build(config={**SIZES, "text_config": text})
    assert model.config.text_config.rope_parameters["rope_theta"] == 123.0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"dtype": "float8"}, "model.dtype"),
        ({"gradient_checkpointing": "sometimes"}, "'sometimes'; expected true, false, reentrant"),
        ({"tokenizer": "/nowhere"}, "model.tokenizer=/nowhere"),
        ({"config": {**SIZES, "text_config": {**SIZES["text_config"], "vocab_size": 3}}}, "vocab_size is 3"),
        ({"nonsense": 1}, r"unknown keys \(nonsense\)"),
        ({"config": {**SIZES, "num_frame": 3}}, r"Nobody reads model.config.num_frame; did you mean .*num_frames\?"),
        (
            {"config": {**SIZES, "vision_config": {**SIZES["vision_config"], "num_layers": 3}}},
            "vision_config.num_layers; did you mean model.config.vision_config.num_hidden_layers",
        ),
        ({"config": {**SIZES, "zzz": 3}}, "Nobody reads model.config.zzz; remove it"),
    ],
)
def test_wrong_settings_are_explained(change, word):
    with pytest.raises(BimbaError, match=word):
        build(**change)


def test_a_missing_key_is_named():
    node = model_node()
    del node["tuning"]
    with pytest.raises(BimbaError, match=r"lacks some \(tuning\)"):
        ModelSettings.from_node(node)


@pytest.mark.parametrize(("arguments", "steps"), [((8, 8, 1), 1), ((16, 2, 4), 2), ((64, 1, 8), 8)])
def test_accumulation(arguments, steps):
    assert accumulation_steps(*arguments) == steps


@pytest.mark.parametrize("arguments", [(8, 3, 1), (4, 8, 1), (0, 1, 1)])
def test_a_global_batch_that_does_not_divide_is_an_error(arguments):
    with pytest.raises(BimbaError, match=r"data\.global_batch_size"):
        accumulation_steps(*arguments)


def test_compiled_layers_have_the_same_gradients(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))

    def gradients(compile):
        model, processor = tiny_model(compressor={"name": "mamba"}, compile=compile)
        compiled = [module for module in model.modules() if module._compiled_call_impl is not None]
        assert len(compiled) == (3 if compile else 0)  # two layers of the language model, one of the compressor
        module = BimbaModule(model, processor, OptimizerSettings(lr=1e-3))
        module(next(iter(FakeData(processor, length=2).train_dataloader()))).losses.mean().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, compiled = gradients(False), gradients(True)
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, msg=name)


@pytest.mark.parametrize(("batch_size", "taken"), [(1, 1), (4, 4), (8, 4), (100, 4)])
def test_a_process_takes_no_more_than_its_share_of_a_step(batch_size, taken):
    assert samples_per_pass(8, batch_size, world_size=2) == taken


def test_a_step_that_cannot_be_dealt_out_is_an_error():
    with pytest.raises(BimbaError, match="expected a multiple of the 3 processes"):
        samples_per_pass(8, 1, world_size=3)


def test_an_outline_differs_from_the_model_only_in_what_is_still_to_be_read():
    settings = ModelSettings.from_node(model_node(config={}, compressor={"name": "mamba"}))
    torch.manual_seed(0)
    model, _ = build_model(settings, "bimba-tiny")
    set_trainable(model, settings.tuning, settings.lora)
    torch.manual_seed(0)
    outline, _, tensors = outline_model(settings, "bimba-tiny")
    set_trainable(outline, settings.tuning, settings.lora, partial(to_meta, tensors=tensors))
    expected = dict(model.named_parameters())
    for name, parameter in outline.named_parameters():
        like = expected.pop(name)
        assert (parameter.shape, parameter.dtype, parameter.requires_grad) == (
            like.shape,
            like.dtype,
            like.requires_grad,
        )
        stored = tensors.get(name.replace(".base_layer.", "."))
        assert parameter.is_meta == (stored is not None), name
        torch.testing.assert_close(parameter if stored is None else stored[...], like, rtol=0, atol=0, msg=name)
    assert not expected
    for (name, buffer), (_, like) in zip(outline.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(buffer, like), name
