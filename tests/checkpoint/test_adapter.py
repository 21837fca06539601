"""Adapter folders: both layouts, merged and live, and what is said when something does not fit."""

from __future__ import annotations

import pytest
import torch
from originals import ADAPTER, BASE, copy_of, edit_json
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_checkpoint import write_video

from bimba import VideoQA
from bimba.checkpoint import load_pretrained, save_pretrained
from bimba.checkpoint.keymap import to_ours
from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.types import BimbaError

GOLDEN = ADAPTER.parents[1] / "golden_lora_loaded.safetensors"


@pytest.fixture
def adapter(tmp_path):
    return copy_of(ADAPTER, tmp_path)


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def pixels():
    with safe_open(ADAPTER.parents[1] / "inputs.safetensors", "pt") as file:
        return file.get_tensor("video8_56")[:4].float()


def prompt(model, golden, pixels):
    """The golden prompt (-200 stands for the video) as embeddings."""
    ids = golden["in.input_ids"][0]
    at = int((ids == -200).nonzero())
    embed = model.get_input_embeddings()
    return torch.cat([embed(ids[:at]), model.encode_video(pixels), embed(ids[at + 1 :])])[None]


@pytest.mark.parametrize("merge", [True, False])
@torch.no_grad()
def test_a_loaded_adapter_computes_what_the_original_does(golden, pixels, merge):
    model, _ = load_pretrained(ADAPTER, base=BASE, merge=merge)
    features = model.vision_tower.encoder(inputs_embeds=model.vision_tower.embeddings(pixels)).last_hidden_state
    torch.testing.assert_close(features, golden["vision_tower_out"], rtol=0, atol=1e-4)
    inputs_embeds = prompt(model, golden, pixels)
    torch.testing.assert_close(inputs_embeds, golden["inputs_embeds"], rtol=0, atol=1e-4)
    torch.testing.assert_close(model(inputs_embeds=inputs_embeds).logits, golden["logits"], rtol=0, atol=1e-4)
    text = model(input_ids=golden["in.text_ids"]).logits[:, -4:]
    torch.testing.assert_close(text, golden["logits_text_last4"], rtol=0, atol=1e-4)
    ids = model.generate(inputs_embeds=inputs_embeds, max_new_tokens=16, eos_token_id=-1, do_sample=False)
    assert torch.equal(ids, golden["greedy_ids"])


@torch.no_grad()
def test_pooling_can_be_overridden(golden, pixels):
    model, _ = load_pretrained(ADAPTER, base=BASE, temporal_pooling=2)
    logits = model(inputs_embeds=prompt(model, golden, pixels)).logits[:, -4:]
    torch.testing.assert_close(logits, golden["logits_tp2_last4"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_in_bfloat16(golden, pixels):
    model, _ = load_pretrained(ADAPTER, base=BASE, dtype=torch.bfloat16)
    logits = model(inputs_embeds=prompt(model, golden, pixels.bfloat16())).logits[:, -4:]
    torch.testing.assert_close(logits.float(), golden["logits_bf16_load_last4"].float(), rtol=0, atol=0.5)


def test_merged_weights_are_the_originals(golden):
    state = load_pretrained(ADAPTER, base=BASE)[0].state_dict()
    merged = {name.removeprefix("merged."): t for name, t in golden.items() if name.startswith("merged.")}
    assert any("vision_tower" in name for name in merged)
    for name, expected in merged.items():
        torch.testing.assert_close(state[to_ours(name)], expected, rtol=0, atol=1e-6)


def test_the_vocabulary_is_cut_to_the_tokenizers():
    model, processor = load_pretrained(ADAPTER, base=BASE)
    assert model.config.text_config.vocab_size == model.get_input_embeddings().num_embeddings == 403
    assert model.get_output_embeddings().out_features == 403
    assert processor.video_token_id == 403  # a placeholder, which needs no row


def test_both_layouts_are_the_same_adapter(adapter):
    factors = torch.load(adapter / "adapter_model.bin", weights_only=True)
    (adapter / "adapter_model.bin").unlink()
    save_file(factors, adapter / "adapter_model.safetensors")
    expected = load_pretrained(ADAPTER, base=BASE)[0].state_dict()
    loaded = load_pretrained(adapter, base=BASE)[0].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())


def test_live_factors_can_be_trained_and_are_merged_when_saved(tmp_path):
    model, processor = load_pretrained(ADAPTER, base=BASE, merge=False)
    factors = [name for name, parameter in model.named_parameters() if "lora_" in name and parameter.requires_grad]
    assert len(factors) == 16 and any("vision_tower" in name for name in factors)
    save_pretrained(model, processor, tmp_path / "saved")
    expected = load_pretrained(ADAPTER, base=BASE)[0].state_dict()
    for name, tensor in load_pretrained(tmp_path / "saved")[0].state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_live_adapter_is_transformers_to_switch(golden):
    model, _ = load_pretrained(ADAPTER, base=BASE, merge=False)
    assert model.active_adapters() == ["default"]
    ids = golden["in.text_ids"]
    expected = model(input_ids=ids).logits
    model.disable_adapters()
    off = model(input_ids=ids).logits
    merged, _ = load_pretrained(ADAPTER, base=BASE)
    base, _ = load_pretrained(BASE, compressor=None)
    torch.testing.assert_close(off, base(input_ids=ids).logits[..., : off.shape[-1]], rtol=0, atol=1e-5)
    assert (off - expected).abs().max() > 1e-2
    model.enable_adapters()
    assert torch.equal(model(input_ids=ids).logits, expected)
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_ordinary_save_pretrained_merges_a_live_adapter(golden, tmp_path):
    model, _ = load_pretrained(ADAPTER, base=BASE, merge=False)
    model.save_pretrained(tmp_path)
    loaded, report = BimbaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    text = loaded(input_ids=golden["in.text_ids"]).logits[:, -4:]
    torch.testing.assert_close(text, golden["logits_text_last4"], rtol=0, atol=1e-4)


def test_the_base_is_found_where_the_adapter_says(adapter):
    edit_json(adapter / "adapter_config.json", lambda c: c.update(base_model_name_or_path=str(BASE)))
    assert load_pretrained(adapter)[0].compressor is not None


def test_an_adapter_without_its_base_names_it():
    with pytest.raises(BimbaError, match=r"needs its base, lmms-lab/LLaVA-Video-7B-Qwen2.*base=<folder>.*--base"):
        load_pretrained(ADAPTER)


def test_a_base_for_what_is_no_adapter():
    with pytest.raises(BimbaError, match="is no adapter .*takes no base="):
        load_pretrained(BASE, base=BASE)


def test_our_format_is_no_base_for_an_adapter():
    with pytest.raises(BimbaError, match="in our format; the adapter .* needs the one in the original's layout"):
        load_pretrained(ADAPTER, base="bimba-tiny")


def test_a_converted_base_will_do(tmp_path):
    save_pretrained(*load_pretrained(BASE), tmp_path / "base")
    expected = load_pretrained(ADAPTER, base=BASE)[0].state_dict()
    loaded = load_pretrained(ADAPTER, base=tmp_path / "base")[0].state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora=True; only plain LoRA"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"r": 0}, "has r=0 and lora_alpha=2; expected a whole number"),
    ],
)
def test_other_kinds_of_adapter_are_refused(adapter, change, words):
    edit_json(adapter / "adapter_config.json", lambda config: config.update(change))
    with pytest.raises(BimbaError, match=words):
        load_pretrained(adapter, base=BASE)


def test_an_adapter_of_another_size(adapter):
    edit_json(adapter / "config.json", lambda config: config.update(hidden_size=128))
    with pytest.raises(BimbaError, match=r"another size than this base: hidden_size 128 \(base: 64\)"):
        load_pretrained(adapter, base=BASE)


def change_factors(adapter, change):
    factors = torch.load(adapter / "adapter_model.bin", weights_only=True)
    torch.save(change(factors), adapter / "adapter_model.bin")


def test_factors_of_another_architecture(adapter):
    change_factors(adapter, lambda factors: {k.replace("self_attn", "attention"): v for k, v in factors.items()})
    with pytest.raises(BimbaError, match=r"does not fit this base .*attention.q_proj is no layer"):
        load_pretrained(adapter, base=BASE)


def test_a_rank_that_is_not_the_settings(adapter):
    change_factors(adapter, lambda factors: {k: v[:4] if "lora_A" in k else v[:, :4] for k, v in factors.items()})
    with pytest.raises(BimbaError, match="has factors of rank 4 and 4, r is 8"):
        load_pretrained(adapter, base=BASE)


def test_no_factors(adapter):
    change_factors(adapter, lambda factors: {})
    with pytest.raises(BimbaError, match="holds no LoRA factors"):
        load_pretrained(adapter, base=BASE)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(BimbaError, match="neither adapter_model.safetensors nor adapter_model.bin"):
        load_pretrained(adapter, base=BASE)


def test_model_and_processor_agree_on_what_the_adapter_says(adapter):
    change = {
        "image_aspect_ratio": "anyres_max_4",
        "image_grid_pinpoints": [[56, 56], [112, 56]],
        "temporal_pooling": 2,
    }
    edit_json(adapter / "config.json", lambda config: config.update(change, mm_newline_position="frame"))
    model, processor = load_pretrained(adapter, base=BASE)
    assert model.config.anyres == processor.anyres and processor.image_max_tiles == 4
    assert model.config.temporal_pooling == processor.temporal_pooling == 2
    assert model.config.newline_position == processor.newline_position == "frame"


def test_the_base_of_another_tower(adapter):
    with pytest.raises(BimbaError, match="does not fit the base .*ckpt_70"):
        load_pretrained(adapter, base=GOLDEN.parent / "ckpt_70_bimba")


@pytest.mark.parametrize("door", ["base=", "adapter_config.json"])
def test_an_adapter_is_no_base(adapter, door):
    edit_json(adapter / "adapter_config.json", lambda c: c.update(base_model_name_or_path=str(adapter)))
    with pytest.raises(BimbaError, match="is an adapter itself; expected a full checkpoint"):
        load_pretrained(adapter, base=adapter if door == "base=" else None)


def test_factors_of_another_size(adapter):
    change_factors(adapter, lambda factors: {k: v[..., :-1] if "lora_A" in k else v for k, v in factors.items()})
    with pytest.raises(BimbaError, match=r"q_proj is \(64, 64\) in the base, \(64, 63\) in the adapter"):
        load_pretrained(adapter, base=BASE)


def test_a_factor_without_its_other(adapter):
    change_factors(adapter, lambda factors: dict(list(factors.items())[1:]))
    with pytest.raises(BimbaError, match="not whole; missing, or no LoRA factor: .*lora_A.weight"):
        load_pretrained(adapter, base=BASE)


def test_trained_weights_are_not_there(adapter):
    (adapter / "non_lora_trainables.bin").unlink()
    with pytest.raises(BimbaError, match=r"non_lora_trainables.bin: there is no such file; the folder holds: adapter"):
        load_pretrained(adapter, base=BASE)


def test_the_engine_answers_with_a_vocabulary_that_has_no_placeholders(tmp_path):
    qa = VideoQA.from_pretrained(ADAPTER, base=BASE, device="cpu")
    video = qa.encode(write_video(tmp_path / "video.mp4"), num_frames=4)
    assert isinstance(video.ask("What happens?", max_new_tokens=4), str)
    assert set(video.choose("Which?", ["one", "two"]).probabilities) == {"A", "B"}
