"""Our format: round trips, strictness, and errors a user can act on."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from tiny_checkpoint import IMAGE_SIZE, tiny_model
from transformers import AutoModel, AutoProcessor, SiglipVisionConfig

from bimba.checkpoint import load_pretrained, save_pretrained
from bimba.checkpoint.source import SHIPPED, checkpoint_folder
from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.config import BimbaConfig
from bimba.model.processor import BimbaProcessor
from bimba.types import BimbaError

MAMBA = {"name": "mamba", "d_state": 4}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    save_pretrained(*tiny_model(), folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    import shutil

    return shutil.copytree(saved, tmp_path / "checkpoint")


def test_round_trip_is_bit_identical(saved):
    expected, _ = tiny_model()
    model, processor = load_pretrained(saved)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values()))
    assert isinstance(processor, BimbaProcessor)
    assert not model.training


def test_a_model_of_transformers_own_vision_configuration_comes_back(tmp_path):
    """Which has SigLIP's pooling head by default, that no checkpoint of ours holds."""
    base, processor = tiny_model()
    vision = SiglipVisionConfig(**{**base.config.vision_config.to_dict(), "vision_use_head": True})
    model = BimbaForConditionalGeneration(BimbaConfig(vision_config=vision, text_config=base.config.text_config))
    assert vision.vision_use_head
    save_pretrained(model, processor, tmp_path / "checkpoint")
    expected, (again, _) = model.state_dict(), load_pretrained(tmp_path / "checkpoint")
    assert all(torch.equal(expected[name], tensor) for name, tensor in again.state_dict().items())


def test_the_auto_classes_know_it(saved):
    assert type(AutoModel.from_pretrained(saved)).__name__ == "BimbaForConditionalGeneration"
    assert isinstance(AutoProcessor.from_pretrained(saved), BimbaProcessor)


def test_a_new_compressor_starts_as_the_identity(saved):
    base, _ = load_pretrained(saved)
    model, processor = load_pretrained(saved, compressor=MAMBA, temporal_pooling=2)
    assert processor.temporal_pooling == model.config.temporal_pooling == 2
    mixer = model.compressor.layers[0].mixer
    assert mixer.out_proj.weight.abs().max() == 0
    # The special initialisation survived transformers' own.
    torch.testing.assert_close(mixer.A_log[0].exp(), torch.arange(1.0, 5.0))
    steps = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert steps.min() >= 1e-4 and steps.max() <= 0.1 + 1e-6
    video = torch.randn(4, 3, IMAGE_SIZE, IMAGE_SIZE)
    base.config.temporal_pooling = 2
    with torch.no_grad():
        torch.testing.assert_close(model.encode_video(video), base.encode_video(video), rtol=0, atol=0)


def test_a_trained_compressor_comes_back(saved, tmp_path):
    model, processor = load_pretrained(saved, compressor=MAMBA)
    torch.nn.init.normal_(model.compressor.layers[0].mixer.out_proj.weight)
    save_pretrained(model, processor, tmp_path / "trained")
    again, _ = load_pretrained(tmp_path / "trained")
    kept, _ = load_pretrained(tmp_path / "trained", compressor=MAMBA)
    dropped, _ = load_pretrained(tmp_path / "trained", compressor=None)
    wanted = model.compressor.layers[0].mixer.out_proj.weight
    assert torch.equal(again.compressor.layers[0].mixer.out_proj.weight, wanted)
    assert torch.equal(kept.compressor.layers[0].mixer.out_proj.weight, wanted)
    assert dropped.compressor is None


@pytest.mark.parametrize("change", [{"query_position": "appended"}, {"d_state": 8}, {"expand": 1}, {"num_layers": 2}])
def test_a_compressor_with_other_options_starts_fresh(saved, tmp_path, change):
    model, processor = load_pretrained(saved, compressor=MAMBA)
    torch.nn.init.normal_(model.compressor.layers[0].mixer.out_proj.weight)
    save_pretrained(model, processor, tmp_path / "trained")
    fresh, _ = load_pretrained(tmp_path / "trained", compressor={**MAMBA, **change})
    assert fresh.config.compressor == {**MAMBA, **change}
    assert fresh.compressor.layers[0].mixer.out_proj.weight.abs().max() == 0


def test_where_the_scan_runs_does_not_change_the_weights(saved, tmp_path):
    model, processor = load_pretrained(saved, compressor=MAMBA)
    torch.nn.init.normal_(model.compressor.layers[0].mixer.out_proj.weight)
    save_pretrained(model, processor, tmp_path / "trained")
    kept, _ = load_pretrained(tmp_path / "trained", compressor={**MAMBA, "d_conv": 4, "scan_backend": "reference"})
    assert all(torch.equal(a, b) for a, b in zip(kept.compressor.parameters(), model.compressor.parameters()))


def test_how_a_compressor_began_does_not_change_its_weights(saved, tmp_path):
    model, processor = load_pretrained(saved, compressor={**MAMBA, "backward_init": "forward"})
    mixer = model.compressor.layers[0].mixer
    assert torch.equal(mixer.A_b_log, mixer.A_log)  # transformers lets it begin as it is asked to
    torch.nn.init.normal_(model.compressor.layers[0].mixer.out_proj.weight)
    save_pretrained(model, processor, tmp_path / "trained")
    kept, _ = load_pretrained(tmp_path / "trained", compressor=MAMBA)  # as train.py asks for it, with its default
    assert all(torch.equal(a, b) for a, b in zip(kept.compressor.parameters(), model.compressor.parameters()))


def test_live_adapters_are_merged_into_what_is_saved_and_only_there(saved, tmp_path):
    model, processor = load_pretrained(saved)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "down_proj"]), model.language_model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    names = list(model.state_dict())
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    save_pretrained(model, processor, tmp_path / "merged")
    assert list(model.state_dict()) == names
    merged, _ = load_pretrained(tmp_path / "merged")
    assert not [name for name in merged.state_dict() if "lora" in name]
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_live_adapters_of_the_vision_tower_are_merged_too(saved, tmp_path):
    model, processor = load_pretrained(saved)
    plain = model.encode_video(torch.ones(4, 3, IMAGE_SIZE, IMAGE_SIZE))
    for part in (model.vision_tower, model.language_model):
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), part)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        expected = model.encode_video(torch.ones(4, 3, IMAGE_SIZE, IMAGE_SIZE))
    assert not torch.allclose(expected, plain, rtol=1e-2, atol=1e-2)
    save_pretrained(model, processor, tmp_path / "merged")
    merged, _ = load_pretrained(tmp_path / "merged")
    with torch.no_grad():
        tokens = merged.encode_video(torch.ones(4, 3, IMAGE_SIZE, IMAGE_SIZE))
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)


def test_saving_again_replaces_and_leaves_nothing_else(copy):
    model, processor = load_pretrained(copy)
    (copy / "model-00001-of-00002.safetensors").write_text("from an older save")
    save_pretrained(model, processor, copy)
    assert not (copy / "model-00001-of-00002.safetensors").exists()
    assert [path.name for path in copy.parent.iterdir()] == ["checkpoint"]


def test_an_interrupted_save_leaves_the_old_checkpoint(copy, monkeypatch):
    model, processor = load_pretrained(copy)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(processor), "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(model, processor, copy)
    monkeypatch.undo()
    assert [path.name for path in copy.parent.iterdir()] == ["checkpoint"]
    load_pretrained(copy)


def test_saving_is_quiet(tmp_path, capfd):
    save_pretrained(*tiny_model(), tmp_path / "checkpoint")
    assert capfd.readouterr() == ("", "")


def no_config(folder):
    (folder / "config.json").unlink()


def config_of_the_originals(folder):
    (folder / "config.json").write_text('{"model_type": "llava_qwen"}')


def broken_config(folder):
    (folder / "config.json").write_text("{")


def a_repository(folder):
    (folder / ".git").mkdir()


def nothing_more(folder):
    """The thesis alone."""


@pytest.mark.parametrize("change", [no_config, config_of_the_originals, broken_config, a_repository, nothing_more])
def test_only_a_checkpoint_is_replaced(copy, change):
    (copy / "thesis.txt").write_text("years of work")
    change(copy)
    held = sorted(path.name for path in copy.iterdir())
    with pytest.raises(BimbaError, match="exists already and is not only a checkpoint in our format"):
        save_pretrained(*tiny_model(), copy)
    assert sorted(path.name for path in copy.iterdir()) == held
    assert (copy / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in copy.parent.iterdir()] == ["checkpoint"]


def test_an_empty_folder_is_written_to(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    save_pretrained(*tiny_model(), tmp_path / "checkpoint")
    load_pretrained(tmp_path / "checkpoint")


def test_an_adapter_that_cannot_be_merged_leaves_the_old_checkpoint(copy):
    model, processor = load_pretrained(copy)
    model.add_adapter(LoraConfig(target_modules=["q_proj"], use_dora=True))
    before = (copy / "model.safetensors").read_bytes()
    with pytest.raises(BimbaError, match="cannot be merged"):
        save_pretrained(model, processor, copy)
    assert (copy / "model.safetensors").read_bytes() == before
    assert [path.name for path in copy.parent.iterdir()] == ["checkpoint"]


def test_a_saved_checkpoint_is_readable_by_others(saved):
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o644}


@pytest.mark.parametrize("frames", [0, 2.5, "2", True])
def test_pooling_of_no_frames_or_of_parts_of_them(saved, frames):
    with pytest.raises(BimbaError, match=f"temporal_pooling is {frames!r}; expected 1 or more frames, a whole number"):
        load_pretrained(saved, temporal_pooling=frames)


# -- folders that are no checkpoint ------------------------------------------------------------------------------


def test_no_such_folder(tmp_path):
    with pytest.raises(BimbaError, match=r"no checkpoint folder .*nowhere.*bimba-tiny"):
        load_pretrained(tmp_path / "nowhere")


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "holiday.mp4").write_bytes(b"")
    with pytest.raises(BimbaError, match=r"not a checkpoint: it has no config.json \(it holds: holiday.mp4\)"):
        load_pretrained(tmp_path)


def test_another_model(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(BimbaError, match="model type 'llama'; expected 'bimba'"):
        load_pretrained(copy)


def test_a_broken_config(copy):
    (copy / "config.json").write_text("{")
    with pytest.raises(BimbaError, match="not a JSON object"):
        load_pretrained(copy)


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_weights_are_named(copy):
    change_weights(copy, lambda weights: weights.pop("projector.0.bias"))
    with pytest.raises(BimbaError, match=r"missing: projector\.0\.bias"):
        load_pretrained(copy)


def test_unexpected_weights_are_named(copy):
    change_weights(copy, lambda weights: weights.update(stray=torch.zeros(1)))
    with pytest.raises(BimbaError, match="unexpected: stray"):
        load_pretrained(copy)


def test_weights_of_another_size_are_named(copy):
    change_weights(copy, lambda weights: weights.update({"image_newline": torch.zeros(5)}))
    with pytest.raises(BimbaError, match=r"of another size: image_newline \(5,\)"):
        load_pretrained(copy)


def test_truncated_weights(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BimbaError, match="truncated: 1,000 bytes of at least"):
        load_pretrained(copy)


def test_weights_are_not_there(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(BimbaError, match="no weights in .*neither model.safetensors nor model.safetensors.index.json"):
        load_pretrained(copy)


def test_shipped_checkpoints_are_small_and_load():
    for name in SHIPPED:
        assert sum(path.stat().st_size for path in checkpoint_folder(name).iterdir()) <= 6_000_000
        model, _ = load_pretrained(name)
        assert 1_000_000 <= sum(p.numel() for p in model.parameters()) <= 3_000_000
