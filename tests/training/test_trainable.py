import pytest
import torch

from bimba.training.trainable import count_parts, log_parts, part_of, set_trainable
from bimba.types import BimbaError
from tests.training.fakes import LORA, tiny_model


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_lora_trains_adapters_projector_and_compressor_only():
    model, _ = tiny_model()
    before = {name for name, _ in model.named_parameters()}
    set_trainable(model, "lora", LORA)
    expected = {name for name in before if name.startswith(("projector.", "compressor."))} | {
        f"language_model.model.layers.{layer}.self_attn.{linear}.lora_{side}.default.weight"
        for layer in range(2)
        for linear in ("q_proj", "v_proj")
        for side in "AB"
    }
    assert trained_names(model) == expected


def test_a_part_can_be_kept_as_it_is():
    model, _ = tiny_model()
    set_trainable(model, "lora", LORA, frozen=["projector"])
    assert {part_of(name) for name in trained_names(model)} == {"lora"}
    with pytest.raises(BimbaError, match=r"model\.frozen has eyes; expected some of .*projector"):
        set_trainable(model, "lora", LORA, frozen=["eyes"])


def test_adapters_of_the_vision_tower_are_an_option_and_a_part_of_their_own():
    model, _ = tiny_model()
    set_trainable(model, "lora", {**LORA, "vision_tower": True})
    adapters = {name for name in trained_names(model) if part_of(name) == "vision_lora"}
    assert adapters == {
        f"vision_tower.encoder.layers.0.self_attn.{linear}.lora_{side}.default.weight"
        for linear in ("q_proj", "v_proj")
        for side in "AB"
    }
    assert not any(part_of(name) == "vision_tower" for name in trained_names(model))
    assert any(part_of(name) == "lora" for name in trained_names(model))
    counts = {count.part: count for count in count_parts(model.named_parameters())}
    assert counts["vision_lora"].trained == counts["vision_lora"].total > 0


def test_layers_that_only_the_language_model_has_cannot_get_adapters_in_the_tower():
    model, _ = tiny_model()
    with pytest.raises(BimbaError, match=r"\['gate_proj'\] does not fit the vision_tower"):
        set_trainable(model, "lora", {**LORA, "target_modules": ["gate_proj"], "vision_tower": True})


def test_the_language_model_stays_itself_and_generates():
    model, processor = tiny_model()
    inputs = processor("Hi", return_tensors="pt")
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    before = model.eval().generate(**inputs, **options)
    kind = type(model.language_model)
    set_trainable(model, "lora", LORA)
    assert type(model.language_model) is kind
    assert torch.equal(model.eval().generate(**inputs, **options), before)  # lora_B starts at zero


def test_target_modules_may_be_one_regular_expression():
    model, _ = tiny_model()
    set_trainable(model, "lora", {**LORA, "target_modules": r".*layers\.1\..*\.(q|k)_proj"})
    adapters = {name for name in trained_names(model) if "lora" in name}
    assert adapters
    assert all("layers.1." in name and ("q_proj" in name or "k_proj" in name) for name in adapters)


def test_full_trains_everything_that_is_read():
    model, _ = tiny_model()
    set_trainable(model, "full", None)
    frozen = {name for name, _ in model.named_parameters()} - trained_names(model)
    assert frozen == {"vision_tower.post_layernorm.weight", "vision_tower.post_layernorm.bias"}
    assert not any("lora" in name for name in trained_names(model))


def test_what_is_trained_is_float32_even_over_a_half_precision_base():
    model, _ = tiny_model()
    set_trainable(model.to(torch.bfloat16), "lora", LORA)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name


@pytest.mark.parametrize(
    ("tuning", "lora", "word"),
    [
        ("some", LORA, "expected one of lora, full"),
        ("lora", None, "model.lora is null"),
        ("lora", {**LORA, "rank": 3}, "rank"),
        ("lora", {"r": 3}, "expected r, alpha, dropout, target_modules"),
        ("lora", {**LORA, "target_modules": ["nothing"]}, "target_modules"),
    ],
)
def test_wrong_settings_are_explained(tuning, lora, word):
    model, _ = tiny_model()
    with pytest.raises(BimbaError, match=word):
        set_trainable(model, tuning, lora)


def test_a_parameter_of_no_part_is_an_error():
    with pytest.raises(BimbaError, match=r"extra\.weight"):
        part_of("extra.weight")


def test_the_table_counts_every_parameter_once(caplog):
    model, _ = tiny_model()
    set_trainable(model, "lora", LORA)
    counts = {count.part: count for count in count_parts(model.named_parameters())}
    assert sum(count.total for count in counts.values()) == sum(p.numel() for p in model.parameters())
    assert counts["vision_tower"].trained == 0
    assert counts["lora"].trained == counts["lora"].total > 0
    with caplog.at_level("INFO"):
        log_parts(model)
    assert f"{counts['projector'].trained:,}" in caplog.text
