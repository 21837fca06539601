"""Live peft adapters: what is saved is the whole model with them merged, and the model keeps them."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import IA3Config, LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from tiny_checkpoint import IMAGE_SIZE, tiny_model

from bimba.model.adapters import merged_state_dict
from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.types import BimbaError

EVERYWHERE = ["q_proj", "fc1", "down_proj"]  # in the language model, in the tower, in both


def with_adapter(model=None, name=None, targets=EVERYWHERE, **settings):
    """A model with an adapter that changes what it computes."""
    model = tiny_model()[0] if model is None else model
    model.add_adapter(LoraConfig(r=2, target_modules=targets, **settings), name)
    torch.manual_seed(1)
    for key, parameter in model.named_parameters():
        if "lora_" in key and name in (None, key.split(".")[-2], key.split(".")[-1]):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@torch.no_grad()
def computed(model):
    """What a model makes of a text and of a video."""
    ids, video = torch.tensor([[3, 4, 5]]), torch.ones(4, 3, IMAGE_SIZE, IMAGE_SIZE)
    return model(input_ids=ids).logits, model.encode_video(video)


def assert_same(a, b, tolerance=1e-4):
    for one, other in zip(a, b):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def reloaded(folder):
    """The model in ``folder``, every weight of which must be there."""
    model, report = BimbaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def test_the_ordinary_save_pretrained_writes_the_merged_model(tmp_path):
    plain = computed(tiny_model()[0])
    model = with_adapter()
    before, expected = {name: t.clone() for name, t in model.state_dict().items()}, computed(model)
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(expected, plain))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    assert not (tmp_path / "adapter_config.json").exists()
    assert_same(computed(reloaded(tmp_path)), expected)

    after = model.state_dict()  # the model keeps its adapters, and they are still transformers' to switch
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert model.active_adapters() == ["default"]
    assert model.get_adapter_state_dict()


def test_an_adapter_of_one_part_is_merged_too(tmp_path):
    model, _ = tiny_model()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), model.language_model)
    model.eval().save_pretrained(tmp_path)
    assert_same(computed(reloaded(tmp_path)), computed(model))


def test_push_to_hub_uploads_the_merged_model(tmp_path, monkeypatch):
    uploaded = tmp_path / "uploaded"
    hub = SimpleNamespace(create_repo=lambda *_, **__: SimpleNamespace(repo_id="me/bimba"))
    card = SimpleNamespace(save=lambda path: None)
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: card)
    monkeypatch.setattr(
        BimbaForConditionalGeneration,
        "_upload_modified_files",
        lambda self, folder, *_, **__: shutil.copytree(folder, uploaded),
    )
    model = with_adapter()
    model.push_to_hub("me/bimba")
    assert_same(computed(reloaded(uploaded)), computed(model))


def test_without_adapters_every_bit_is_as_it_was():
    model, _ = tiny_model()
    merged = merged_state_dict(model)
    assert list(merged) == list(model.state_dict())
    assert all(torch.equal(merged[name], tensor) for name, tensor in model.state_dict().items())


def test_the_names_are_a_plain_models_in_its_order():
    assert list(merged_state_dict(with_adapter())) == list(tiny_model()[0].state_dict())


def test_an_adapter_that_is_switched_off_is_not_merged(tmp_path):
    model = with_adapter()
    model.disable_adapters()
    model.save_pretrained(tmp_path)
    expected = tiny_model()[0].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in reloaded(tmp_path).state_dict().items())


@pytest.mark.parametrize("disabled", [False, True])
def test_weights_that_peft_has_merged_already(disabled):
    model = with_adapter()
    expected = computed(tiny_model()[0] if disabled else model)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.merge()
    if disabled:
        model.disable_adapters()
    fresh = tiny_model()[0]
    fresh.load_state_dict(merged_state_dict(model))
    assert_same(computed(fresh), expected)


def test_of_several_adapters_the_active_ones_are_merged():
    model = with_adapter(name="text", targets=["q_proj", "down_proj"])
    model = with_adapter(model, name="tower", targets=["fc1"])
    for active in ("text", "tower", ["text", "tower"]):
        model.set_adapter(active)
        fresh = tiny_model()[0]
        fresh.load_state_dict(merged_state_dict(model))
        assert_same(computed(fresh), computed(model))


def test_embeddings_and_convolutions():
    model = with_adapter(targets=["embed_tokens", "patch_embedding"])
    fresh = tiny_model()[0]
    expected = computed(model)
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(expected, computed(fresh)))
    fresh.load_state_dict(merged_state_dict(model))
    assert_same(computed(fresh), expected)


def test_sixteen_bits_are_rounded_once():
    model = with_adapter(tiny_model()[0].to(torch.bfloat16))
    name = "language_model.model.layers.0.self_attn.q_proj"
    layer = model.get_submodule(name)
    for factor in (layer.lora_A, layer.lora_B):
        factor.float()  # as training keeps them
    update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = merged_state_dict(model)[f"{name}.weight"]
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, (layer.base_layer.weight.float() + update).to(torch.bfloat16))


@pytest.mark.filterwarnings("ignore:The following device_map keys")
def test_weights_on_the_disk_are_fetched_to_be_merged(tmp_path):
    tiny_model()[0].save_pretrained(tmp_path / "base")
    device_map = {"vision_tower": "disk", "projector": "cpu", "image_newline": "cpu", "language_model": "disk"}
    offloaded = BimbaForConditionalGeneration.from_pretrained(
        tmp_path / "base", device_map=device_map, offload_folder=str(tmp_path / "offloaded")
    )
    assert offloaded.language_model.model.layers[0].self_attn.q_proj.weight.is_meta
    inner = with_adapter()
    offloaded.add_adapter(LoraConfig(r=2, target_modules=EVERYWHERE))
    factors = {name: t for name, t in inner.state_dict().items() if "lora_" in name}
    for name, factor in factors.items():
        module, key = name.rsplit(".", 1)
        setattr(offloaded.get_submodule(module), key, torch.nn.Parameter(factor))
    offloaded.save_pretrained(tmp_path / "saved")
    expected, saved = merged_state_dict(inner), load_file(tmp_path / "saved/model.safetensors")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in saved.items())


# -- what cannot be merged is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "layer"),
    [
        (LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), "self_attn.q_proj"),
        (LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True), "self_attn.q_proj"),
        (LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["projector"]), "projector"),
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "self_attn.q_proj"),
    ],
    ids=["DoRA", "lora_bias", "modules_to_save", "IA3"],
)
def test_other_adapters_are_refused_by_name(tmp_path, config, layer):
    model, _ = tiny_model()
    model.add_adapter(config)
    with pytest.raises(BimbaError, match=rf"The adapter at \S*{layer} \(peft\..*cannot be merged.*plain LoRA"):
        model.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    assert model.active_adapters() == ["default"]


def test_a_given_state_dict_is_written_if_it_is_merged(tmp_path):
    model = with_adapter()
    with pytest.raises(BimbaError, match=r"not merged \(\S+base_layer\S+ and \d+ more\).*leave state_dict out"):
        model.save_pretrained(tmp_path, state_dict=model.state_dict())
    merged = {name: tensor + 1 for name, tensor in merged_state_dict(model).items()}
    model.save_pretrained(tmp_path, state_dict=dict(merged))
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, merged[name]) for name, tensor in saved.items())
