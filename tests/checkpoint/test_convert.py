"""``bimba convert``: both ways, to the bit, and nothing half-written."""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from originals import ADAPTER, BASE, FULL, copy_of, edit_json, shard
from safetensors.torch import load_file

from bimba.checkpoint import convert, load_pretrained
from bimba.checkpoint.tensors import INDEX
from bimba.cli import main
from bimba.types import BimbaError


def test_there_and_back_is_bit_identical(tmp_path):
    convert(FULL, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    for name in ("model.safetensors", "config.json", "vocab.json", "merges.txt", "added_tokens.json",
                 "tokenizer_config.json", "special_tokens_map.json"):  # fmt: skip
        assert (tmp_path / "back" / name).read_bytes() == (FULL / name).read_bytes(), name
    written = {path.name for path in (tmp_path / "back").iterdir()}
    assert {path.name for path in FULL.iterdir()} - written == {"tokenizer.json"}  # the original reads the others
    ours, theirs = (json.loads((f / "generation_config.json").read_text()) for f in (tmp_path / "back", FULL))
    assert {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)} == {"transformers_version"}
    tower = json.loads((FULL / "tiny_vision_config.json").read_text())
    assert json.loads((tmp_path / "back/tiny_vision_config.json").read_text()) == {
        k: tower[k] for k in tower if k != "note"
    }


def test_shards_stay_as_they_are(tmp_path):
    source = copy_of(FULL, tmp_path / "source")
    shards = shard(source)
    convert(source, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    for part in shards:
        assert (tmp_path / "back" / part.name).read_bytes() == part.read_bytes()
    assert (tmp_path / "back" / INDEX).read_bytes() == (source / INDEX).read_bytes()


def test_ours_is_what_load_pretrained_would_have_given(tmp_path):
    convert(ADAPTER, tmp_path / "ours", base=BASE, temporal_pooling=2)
    expected, _ = load_pretrained(ADAPTER, base=BASE)
    model, processor = load_pretrained(tmp_path / "ours")
    assert model.config.temporal_pooling == processor.temporal_pooling == 2
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert model.generation_config.eos_token_id == expected.generation_config.eos_token_id == 402


def test_a_merged_adapter_as_a_full_original_checkpoint(tmp_path):
    convert(ADAPTER, tmp_path / "full", base=BASE, to="original")
    config = json.loads((tmp_path / "full/config.json").read_text())
    assert (config["compressor_type"], config["vocab_size"], config["torch_dtype"]) == ("bimba", 403, "float32")
    expected = load_pretrained(ADAPTER, base=BASE)[0].state_dict()
    loaded = load_pretrained(tmp_path / "full")[0].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())


def test_a_model_that_never_was_the_originals(tmp_path):
    convert("bimba-tiny", tmp_path / "original", to="original")
    expected, shipped = load_pretrained("bimba-tiny")
    model, processor = load_pretrained(tmp_path / "original", compressor=None)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())
    for key in ("num_frames", "newline_after_medium"):  # of which the original's files know nothing
        assert getattr(processor, key) == getattr(shipped, key) == getattr(model.config, key)
    text = "<|im_start|>user\nWhich digit, 42?<|im_end|>"
    assert processor.tokenizer.encode(text) == shipped.tokenizer.encode(text)
    assert model.config.anyres.resolutions == shipped.anyres.resolutions
    assert "lm_head.weight" not in load_file(tmp_path / "original/model.safetensors")  # tied to the embedding


def test_the_originals_layout_knows_one_compressor(tmp_path):
    convert(FULL, tmp_path / "ours")
    config = json.loads((tmp_path / "ours/config.json").read_text())
    config["compressor"] = {"name": "mamba", "bidirectional": False}
    (tmp_path / "ours/config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "ours/model.safetensors")
    from safetensors.torch import save_file

    save_file({k: v for k, v in weights.items() if "_b." not in k and "_b_log" not in k and "D_b" not in k},
              tmp_path / "ours/model.safetensors")  # fmt: skip
    with pytest.raises(BimbaError, match="the original has one with the options .*bidirectional': True"):
        convert(tmp_path / "ours", tmp_path / "back", to="original")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]


def test_the_originals_layout_holds_a_compressor_that_began_in_another_way(tmp_path):
    convert(FULL, tmp_path / "ours")
    config = json.loads((tmp_path / "ours/config.json").read_text())
    config["compressor"] = {"name": "mamba", "backward_init": "forward"}
    (tmp_path / "ours/config.json").write_text(json.dumps(config))
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    assert json.loads((tmp_path / "back/config.json").read_text())["compressor_type"] == "bimba"


def test_the_originals_layout_holds_what_it_says_of_positions_and_no_more(tmp_path):
    scaled = copy_of(FULL, tmp_path / "scaled")
    edit_json(scaled / "config.json", lambda config: config.update(rope_scaling={"type": "linear", "factor": 2.0}))
    convert(scaled, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((scaled / "config.json").read_text())
    edit_json(tmp_path / "ours/config.json", lambda config: config["text_config"]["rope_parameters"].update(factor=4.0))
    with pytest.raises(BimbaError, match="has rope_parameters=.*'factor': 4.0.*would have .*'factor': 2.0"):
        convert(tmp_path / "ours", tmp_path / "other", to="original")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("more", [{"beta_fast": 16}, {"attention_factor": 2.0}])
def test_positions_that_the_original_was_never_told_of_are_not_lost(tmp_path, more):
    scaled = copy_of(FULL, tmp_path / "scaled")
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    edit_json(scaled / "config.json", lambda config: config.update(rope_scaling=yarn))
    convert(scaled, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    edit_json(tmp_path / "ours/config.json", lambda config: config["text_config"]["rope_parameters"].update(more))
    with pytest.raises(BimbaError, match=f"has rope_parameters=.*{next(iter(more))}"):
        convert(tmp_path / "ours", tmp_path / "other", to="original")


def test_what_was_changed_in_ours_is_changed_in_the_originals_layout(tmp_path):
    convert(FULL, tmp_path / "ours")
    edit_json(tmp_path / "ours/config.json", lambda config: config["text_config"].update(rms_norm_eps=1e-3))
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    assert json.loads((tmp_path / "back/config.json").read_text())["rms_norm_eps"] == 1e-3


def test_a_missing_shard_is_seen_before_anything_is_written(tmp_path):
    source = copy_of(FULL, tmp_path / "source")
    shard(source)[2].unlink()
    with pytest.raises(BimbaError, match="is missing"):
        convert(source, tmp_path / "to/ours")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no more")])
def test_nothing_is_left_of_a_failed_conversion(tmp_path, error):
    source = copy_of(FULL, tmp_path / "source")
    shard(source)
    written = []

    def fail(done, total):
        written.extend(path.name for path in tmp_path.rglob("*.safetensors") if source not in path.parents)
        raise error

    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else BimbaError):
        convert(source, tmp_path / "to/ours", on_shard=fail)
    assert written == ["model-00001-of-00003.safetensors"]  # so there was something to leave
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("to", ["bimba", "original"])
@pytest.mark.parametrize("most", [0, 500, 3_500, 5_000, 9_000, 12_000, 200_000])
def test_a_full_disk_at_any_file(tmp_path, most, to):
    (tmp_path / "empty").mkdir()
    for folder in ("new/deep", "empty"):
        with files_of_at_most(most), pytest.raises(BimbaError, match=f"{folder} could not be written: .*too large"):
            convert(FULL, tmp_path / folder, to=to)
        assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


@contextmanager
def files_of_at_most(size):
    """As ``ulimit -f``, in bytes: the system refuses to write more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_occupied_destination_is_left_alone(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/thesis.txt").write_text("years of work")
    with pytest.raises(BimbaError, match="exists already"):
        convert(FULL, tmp_path / "there")
    assert (tmp_path / "there/thesis.txt").read_text() == "years of work"


def test_the_command(tmp_path, capsys):
    folder = tmp_path / "ours"
    assert main(["convert", str(ADAPTER), str(folder), "--base", str(BASE)]) == 0
    assert "ours" in capsys.readouterr().out and (folder / "model.safetensors").exists()
    assert main(["convert", str(ADAPTER), str(tmp_path / "other")]) == 1
    assert "needs its base" in capsys.readouterr().err
    assert main(["convert", str(FULL), str(folder / "config.json/sub")]) == 1
    assert "could not be written" in capsys.readouterr().err
    assert Path(folder / "config.json").stat().st_mode & 0o044
