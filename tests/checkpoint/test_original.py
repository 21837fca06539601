"""Folders in the original's layout: what is read from them, and that nothing is read that should not be."""

from __future__ import annotations

import logging
import os
import pickle
import struct

import pytest
import torch
from originals import ADAPTER, BASE, FULL, copy_of, edit_json, shard
from safetensors.torch import load_file, save_file

from bimba.checkpoint import load_pretrained
from bimba.checkpoint.keymap import KEYMAP, to_original, to_ours
from bimba.checkpoint.tensors import INDEX
from bimba.types import BimbaError

ABSENT = object()


@pytest.fixture
def full(tmp_path):
    return copy_of(FULL, tmp_path)


def state(folder, **options):
    return load_pretrained(folder, **options)[0].state_dict()


def test_every_tensor_arrives_under_our_name():
    stored = load_file(FULL / "model.safetensors")
    loaded = state(FULL)
    assert len(loaded) == len(stored)
    assert all(torch.equal(loaded[to_ours(name)], tensor) for name, tensor in stored.items())


def test_the_key_map_reads_the_same_in_both_directions():
    for name in load_file(FULL / "model.safetensors"):
        assert to_original(to_ours(name)) == name
    for side in zip(*KEYMAP):
        assert not [a for a in side for b in side if a != b and b.startswith(a)]
    assert to_ours("model.layer.0") is None and to_original("lm_head.weight") is None


def test_what_the_folder_says_is_taken_and_can_be_overridden(full):
    edit_json(full / "config.json", lambda c: c.update(temporal_pooling=2, mm_newline_position="frame", rope_theta=5e5))
    edit_json(
        full / "config.json", lambda c: c.update(image_aspect_ratio="anyres_max_4", image_grid_pinpoints=[[56, 112]])
    )
    model, processor = load_pretrained(full)
    assert model.config.anyres == processor.anyres
    assert (processor.anyres.max_tiles, processor.anyres.resolutions) == (4, [(56, 112)])
    assert (model.config.temporal_pooling, processor.temporal_pooling) == (2, 2)
    assert (model.config.newline_position, processor.newline_position) == ("frame", "frame")
    assert model.config.text_config.rope_parameters["rope_theta"] == 5e5
    assert (model.config.compressor, model.config.num_frames) == ({"name": "mamba"}, 64)
    assert load_pretrained(full, temporal_pooling=1)[0].config.temporal_pooling == 1


def test_placeholders_come_behind_the_originals_tokens():
    model, processor = load_pretrained(FULL)
    assert (model.config.video_token_id, model.config.image_token_id) == (403, 404)
    assert processor.video_token_id == 403
    assert processor.tokenizer.encode("<|im_end|>") == [402]


def test_shards_are_read(full):
    expected = state(FULL)
    shard(full)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state(full).items())


def test_dtype_is_the_stored_one_or_the_one_asked_for():
    assert load_pretrained(FULL)[0].dtype == torch.float32
    assert load_pretrained(FULL, dtype=torch.bfloat16)[0].language_model.dtype == torch.bfloat16


def test_device_auto_spreads_the_model():
    assert load_pretrained(FULL, device="auto")[0].device == torch.device("cpu")


def test_what_is_no_weight_is_left_out_and_listed_once(full, caplog):
    weights = load_file(full / "model.safetensors")
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.vision_tower.vision_tower.vision_model.head.probe": torch.ones(1, 1, 48),
    }
    save_file({**weights, **extra}, full / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.INFO, logger="bimba"):
        load_pretrained(full)
    messages = [record.message for record in caplog.records if "left out" in record.message]
    assert len(messages) == 1 and all(name in messages[0] for name in extra)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.layers.7.extra.weight": torch.ones(2)}, "unexpected: language_model.model.layers.7.extra.weight"),
        ({"model.gadget.weight": torch.ones(2)}, "another model; unexpected: model.gadget.weight"),
        ({"model.norm.weight": None}, "missing: language_model.model.norm.weight"),
        ({"model.compressor.layers.0.mixer.D": None}, "missing: compressor.layers.0.mixer.D"),
        ({"model.image_newline": torch.ones(63)}, r"of another size: image_newline \(63,\) \(expected \(64,\)\)"),
    ],
)
def test_loads_are_strict(full, change, words):
    weights = {**load_file(full / "model.safetensors"), **change}
    save_file({k: v for k, v in weights.items() if v is not None}, full / "model.safetensors", {"format": "pt"})
    with pytest.raises(BimbaError, match=words):
        load_pretrained(full)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llava_llama"}, "model type 'llava_llama'; expected 'bimba' .ours. or 'llava_qwen'"),
        ({"mm_projector_type": "linear"}, "mm_projector_type='linear'.*expected 'mlp2x_gelu'"),
        ({"mm_spatial_pool_mode": "max"}, "mm_spatial_pool_mode='max'"),
        ({"compressor_type": "perceiver"}, "compressor_type='perceiver'"),
        ({"hidden_size": 128}, "of another size"),
        ({"mm_newline_position": "everywhere"}, "newline_position is 'everywhere'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end=True"),
        ({"mm_projector_type": ABSENT}, "mm_projector_type='linear' .the default."),
        ({"mm_patch_merge_type": ABSENT}, "mm_patch_merge_type='flat' .the default."),
        ({"num_hidden_layers": ABSENT}, "does not say num_hidden_layers"),
        ({"temporal_pooling": 0}, "config.json: temporal_pooling is 0"),
        ({"bimba": {"num_frame": 3}}, "has bimba={'num_frame': 3}; expected some of"),
        ({"bimba": {"num_frames": -3}}, "num_frames is -3"),
        ({"bimba": {"newline_after_medium": "false"}}, "has bimba="),
        ({"bimba": None}, "has bimba=None"),
        ({"hidden_size": "64"}, "config.json makes no model: .*hidden_size"),
        ({"vocab_size": -1}, "config.json makes no model"),
        ({"num_attention_heads": 0}, "config.json makes no model"),
        ({"hidden_act": "foo"}, "config.json makes no model: .*foo"),
        ({"torch_dtype": "foo"}, "config.json makes no model: .*foo"),
        ({"temporal_pooling": "2"}, "config.json: temporal_pooling is '2'; expected 1 or more frames"),
        ({"temporal_pooling": 2.5}, "config.json: temporal_pooling is 2.5; expected 1 or more frames"),
        ({"rope_scaling": "linear"}, "config.json makes no model"),
    ],
)
def test_what_would_be_another_function_is_refused(full, change, words):
    def edit(config):
        config.update(change)
        for key in [key for key in config if config[key] is ABSENT]:
            del config[key]

    edit_json(full / "config.json", edit)
    with pytest.raises(BimbaError, match=words):
        load_pretrained(full)


def test_absent_settings_are_what_the_original_takes_them_for(full):
    edit_json(
        full / "config.json", lambda config: [config.pop(key) for key in ("mm_newline_position", "image_aspect_ratio")]
    )
    model, processor = load_pretrained(full)
    assert model.config.newline_position == processor.newline_position == "one_token"
    for images in (model.config, processor):
        with pytest.raises(BimbaError, match="takes videos only"):
            _ = images.anyres


def test_older_names_in_the_configuration(full):
    edit_json(full / "config.json", lambda config: config.update(rope_scaling={"type": "linear", "factor": 2.0}))
    rope = load_pretrained(full)[0].config.text_config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("linear", 2.0, 1e6)


def test_newer_names_in_the_configuration(full):
    scaled = {"rope_type": "linear", "factor": 2.0}
    edit_json(full / "config.json", lambda config: config.update(rope_parameters=scaled))
    rope = load_pretrained(full)[0].config.text_config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("linear", 2.0, 1e6)


def test_a_tied_head_is_the_embedding_whatever_is_stored(full):
    edit_json(full / "config.json", lambda config: config.update(tie_word_embeddings=True))
    model, _ = load_pretrained(full)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (("tokenizer.json", "vocab.json", "merges.txt"), r"tokenizer in .* is not whole: it has \d tokens"),
        (
            ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
            "no <.im_start.>",
        ),
    ],
)
def test_half_a_tokenizer_is_none(full, missing, words):
    for name in missing:
        (full / name).unlink()
    with pytest.raises(BimbaError, match=words):
        load_pretrained(full)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_settings_for_generation(full, content):
    (full / "generation_config.json").write_text(content)
    with pytest.raises(BimbaError, match="generation_config.json"):
        load_pretrained(full)


class WritesAFile:
    """A pickle of this would run code when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["adapter_model.bin", "non_lora_trainables.bin"])
@pytest.mark.parametrize("with_torch", [True, False])
def test_no_pickle_is_executed(tmp_path, name, with_torch):
    adapter, trace = copy_of(ADAPTER, tmp_path), tmp_path / "it-ran"
    content = {"base_model.model.model.mm_projector.0.weight": WritesAFile(trace)}
    if with_torch:
        torch.save(content, adapter / name)
    else:
        (adapter / name).write_bytes(pickle.dumps(content))
    with pytest.raises(BimbaError, match=f"{name} .*nothing in it was executed"):
        load_pretrained(adapter, base=BASE)
    assert not trace.exists()
    pickle.loads(pickle.dumps(WritesAFile(trace)))
    assert trace.exists()  # the pickle is the kind that runs


def test_a_bin_of_something_else_than_tensors(tmp_path):
    adapter = copy_of(ADAPTER, tmp_path)
    torch.save([1, 2], adapter / "non_lora_trainables.bin")
    with pytest.raises(BimbaError, match="something else than named tensors"):
        load_pretrained(adapter, base=BASE)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"a": 1}, 2)[:2] + b".",  # ends before anything was put on the stack
        b"t" + pickle.dumps({"a": 1}),  # takes a tuple from an empty stack
        b"PK\6\7" + struct.pack("<LQL", 0, 0, 2) + b"PK\5\6" + bytes(18),  # an archive over two disks
        b"J\x01.",  # a number of four bytes, cut
    ],
    ids=["nothing", "stack", "disks", "bytes"],
)
def test_a_damaged_bin_is_named(tmp_path, content):
    adapter = copy_of(ADAPTER, tmp_path)
    (adapter / "adapter_model.bin").write_bytes(content)
    with pytest.raises(BimbaError, match=r"adapter_model\.bin"):
        load_pretrained(adapter, base=BASE)


@pytest.mark.parametrize("escape", ["../elsewhere.safetensors", "/etc/passwd", "sub/part.safetensors", "weights.bin"])
def test_an_index_that_leaves_the_folder_is_refused(full, escape):
    shard(full)
    edit_json(full / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": escape}))
    with pytest.raises(BimbaError, match="Do not load this checkpoint"):
        load_pretrained(full)


def test_an_oversized_header_is_refused(full):
    (full / "model.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(BimbaError, match="no safetensors file: its header would be 1,099,511,627,776 bytes"):
        load_pretrained(full)


def test_damaged_files_are_named(full):
    part = shard(full)[1]
    whole = part.read_bytes()
    part.write_bytes(whole[:-100])
    with pytest.raises(
        BimbaError, match=rf"{part.name} is truncated: {len(whole) - 100:,} bytes of at least {len(whole):,}"
    ):
        load_pretrained(full)
    part.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(BimbaError, match="Git LFS pointer.*git lfs pull"):
        load_pretrained(full)
    part.write_bytes(b"")
    with pytest.raises(BimbaError, match="no safetensors file"):
        load_pretrained(full)
    part.unlink()
    with pytest.raises(BimbaError, match=rf"{part.name} is missing; .* says it holds \d+ tensors"):
        load_pretrained(full)


def test_an_index_that_lies(full):
    shard(full)
    edit_json(full / INDEX, lambda index: index["weight_map"].pop("model.norm.weight"))
    with pytest.raises(BimbaError, match="wrong about: model.norm.weight"):
        load_pretrained(full)


@pytest.mark.parametrize("name", ["adapter_model.bin", "non_lora_trainables.bin"])
def test_an_empty_bin_is_named(tmp_path, name):
    adapter = copy_of(ADAPTER, tmp_path)
    (adapter / name).write_bytes(b"")
    with pytest.raises(BimbaError, match=rf"{name} cannot be read \(0 bytes\)"):
        load_pretrained(adapter, base=BASE)


def test_an_lfs_pointer_for_a_bin(tmp_path):
    adapter = copy_of(ADAPTER, tmp_path)
    (adapter / "non_lora_trainables.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BimbaError, match="Git LFS pointer"):
        load_pretrained(adapter, base=BASE)


def test_a_name_that_is_neither_folder_nor_on_the_hub():
    with pytest.raises(BimbaError, match="no checkpoint folder nobody/nothing, and as a model of the Hugging Face hub"):
        load_pretrained("nobody/nothing")


def test_the_originals_checkpoints_are_asked_without_a_line_break_behind_the_medium():
    for model, processor in (load_pretrained(FULL), load_pretrained(ADAPTER, base=BASE)):
        assert not model.config.newline_after_medium and not processor.newline_after_medium


@pytest.mark.parametrize(
    ("option", "words"), [({"dtype": "foo"}, "Unknown dtype 'foo'"), ({"device": "cuda:99"}, "cuda:99")]
)
def test_devices_and_dtypes_that_there_are_not(option, words):
    with pytest.raises(BimbaError, match=words):
        load_pretrained(FULL, **option)
