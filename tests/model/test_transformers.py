"""What transformers promises of any model: auto classes, dtypes, attention, device maps, batches, caches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoint import IMAGE_SIZE, NUM_FRAMES, tiny_model
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache, LogitsProcessor, LogitsProcessorList

from bimba.checkpoint import load_pretrained, save_pretrained
from bimba.model.bimba import CACHE, BimbaForConditionalGeneration
from bimba.model.config import BimbaConfig
from bimba.model.mamba import IN_FLOAT32, cast
from bimba.model.processor import BimbaProcessor
from bimba.types import BimbaError

GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def parts() -> tuple[BimbaForConditionalGeneration, BimbaProcessor]:
    """A random model whose compressor changes the video's tokens, and its processor."""
    base, processor = tiny_model()
    torch.manual_seed(1)
    config = BimbaConfig.from_dict({**base.config.to_dict(), "compressor": {"name": "mamba", "d_state": 4}})
    model = BimbaForConditionalGeneration(config).eval()
    model.load_state_dict(base.state_dict(), strict=False)
    mixer = model.compressor.layers[0].mixer
    torch.nn.init.normal_(mixer.out_proj.weight, std=0.5)
    for name in IN_FLOAT32:  # to values that bfloat16 does not have
        torch.nn.init.uniform_(mixer.get_parameter(name), 0.1, 1.0)
    return model, processor


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    save_pretrained(*parts, folder)
    return folder


def video(num_frames: int = NUM_FRAMES, seed: int = 0) -> Tensor:
    return torch.randn(num_frames, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def prefix_length(processor: BimbaProcessor, num_frames: int = NUM_FRAMES) -> int:
    return 1 + processor.num_video_tokens(num_frames)


def prompt(processor: BimbaProcessor, question: str, num_frames: int = NUM_FRAMES) -> Tensor:
    text = f"<|im_start|>{processor.video_token * processor.num_video_tokens(num_frames)}{question}"
    return processor.tokenizer(text, return_tensors="pt")["input_ids"]


def left_padded(prompts: list[Tensor]) -> dict[str, Tensor]:
    width = max(ids.shape[1] for ids in prompts)
    pads = [width - ids.shape[1] for ids in prompts]
    ids = torch.cat([torch.nn.functional.pad(ids, (pad, 0)) for ids, pad in zip(prompts, pads)])
    return {"input_ids": ids, "attention_mask": torch.stack([torch.arange(width) >= pad for pad in pads]).long()}


# -- saved, loaded, found ----------------------------------------------------------------------------------------


def test_save_and_load(parts, tmp_path):
    model, processor = parts
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = BimbaForConditionalGeneration.from_pretrained(tmp_path)
    for key in ("compressor", "temporal_pooling", "newline_position", "num_frames", "video_token_id"):
        assert getattr(again.config, key) == getattr(model.config, key)
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    assert BimbaProcessor.from_pretrained(tmp_path).num_frames == processor.num_frames


@pytest.mark.parametrize("cls", [BimbaForConditionalGeneration, BimbaConfig])
def test_a_checkpoint_of_the_original_is_no_model_with_random_weights(cls, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "llava_qwen"}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(BimbaError, match=f"{tmp_path} is of model type 'llava_qwen'.*checkpoint.load_pretrained"):
        cls.from_pretrained(tmp_path)


def test_the_auto_classes_load_it(parts, folder):
    model, processor = parts
    ids = prompt(processor, "Who?")
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    inputs = {"input_ids": ids, "pixel_values_videos": [video()], **GREEDY}
    assert torch.equal(loaded.generate(**inputs), model.generate(**inputs))
    assert isinstance(AutoProcessor.from_pretrained(folder), BimbaProcessor)


# -- dtype, attention, devices -----------------------------------------------------------------------------------


def test_a_dtype_reaches_every_part_and_rounds_nothing_that_is_computed_in_float32(parts, folder):
    stored = parts[0].state_dict()
    half = BimbaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    for name, parameter in half.named_parameters():
        if name.endswith(IN_FLOAT32):
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, stored[name])
        else:
            assert parameter.dtype == torch.bfloat16, name
    assert sum(name.endswith(IN_FLOAT32) for name, _ in half.named_parameters()) == len(IN_FLOAT32)
    assert half.encode_video(video()).dtype == torch.bfloat16
    for name, parameter in cast(
        BimbaForConditionalGeneration.from_pretrained(folder), torch.bfloat16
    ).named_parameters():
        assert torch.equal(parameter, half.get_parameter(name))
        assert parameter.dtype == half.get_parameter(name).dtype


def test_a_fresh_compressor_in_bfloat16_starts_unrounded(tmp_path):
    save_pretrained(*tiny_model(), tmp_path / "base")
    model, _ = load_pretrained(tmp_path / "base", compressor={"name": "mamba"}, dtype="bfloat16")
    mixer = model.compressor.layers[0].mixer
    assert mixer.in_proj.weight.dtype == torch.bfloat16
    assert torch.equal(mixer.A_log[0], torch.arange(1, 17, dtype=torch.float32).log())
    assert not torch.equal(mixer.A_log, mixer.A_log.bfloat16().float())


def test_a_checkpoint_in_bfloat16_is_the_function_it_was(parts, folder, tmp_path):
    rounded = BimbaForConditionalGeneration.from_pretrained(folder).to(torch.bfloat16)
    rounded.save_pretrained(tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    loaded = BimbaForConditionalGeneration.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter.to(torch.bfloat16), rounded.get_parameter(name))
        assert torch.equal(parameter.float(), rounded.get_parameter(name).float())  # rounded once, not again
    with torch.no_grad():
        assert torch.equal(loaded.encode_video(video()), rounded.encode_video(video()))


def test_a_compressor_without_norm_computes_in_its_weights_dtype(parts):
    config = BimbaConfig.from_dict(
        {**parts[0].config.to_dict(), "compressor": {"name": "mamba", "d_state": 4, "norm": False}}
    )
    model = cast(BimbaForConditionalGeneration(config).eval(), torch.bfloat16)
    assert model.encode_video(video()).dtype == torch.bfloat16


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_attention_implementation_reaches_every_part(parts, folder, attention):
    model, processor = parts
    loaded = BimbaForConditionalGeneration.from_pretrained(folder, attn_implementation=attention)
    for part in (loaded, loaded.vision_tower, loaded.language_model, loaded.language_model.model):
        assert part.config._attn_implementation == attention
    ids = prompt(processor, "Who?")
    with torch.no_grad():
        logits = loaded(input_ids=ids, pixel_values_videos=[video()]).logits
        expected = model(input_ids=ids, pixel_values_videos=[video()]).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


DEVICE_MAPS = {
    "auto": "auto",
    "partly on disk": {
        "vision_tower": "disk",
        "projector": "disk",
        "image_newline": "cpu",
        "compressor": "cpu",
        "language_model": "disk",
    },
}


@pytest.mark.parametrize("name", DEVICE_MAPS)
@pytest.mark.filterwarnings("ignore:The following device_map keys")  # image_newline is no module
def test_a_device_map_changes_no_answer(parts, folder, tmp_path, name):
    model, processor = parts
    loaded = BimbaForConditionalGeneration.from_pretrained(
        folder, device_map=DEVICE_MAPS[name], offload_folder=str(tmp_path)
    )
    devices = {parameter.device.type for parameter in loaded.parameters()}
    assert devices == ({"cpu"} if name == "auto" else {"cpu", "meta"})  # meta: fetched from the disk when needed
    ids = prompt(processor, "Who?")
    assert torch.equal(
        loaded.generate(input_ids=ids, pixel_values_videos=[video()], **GREEDY),
        model.generate(input_ids=ids, pixel_values_videos=[video()], **GREEDY),
    )


# -- generate ----------------------------------------------------------------------------------------------------


def test_a_left_padded_batch_of_different_prompts_and_videos_is_each_alone(parts):
    model, processor = parts
    lengths, questions = (4, 6, 2, 4), ("Who?", "What happened then?", "Where did the ball go?", "And?")
    prompts = [prompt(processor, q, n) for q, n in zip(questions, lengths)]
    videos = [video(n, seed) for seed, n in enumerate(lengths)]
    alone = [
        model.generate(input_ids=ids, pixel_values_videos=[one], **GREEDY)[0, ids.shape[1] :]
        for ids, one in zip(prompts, videos)
    ]
    batch = left_padded(prompts)
    together = model.generate(**batch, pixel_values_videos=videos, **GREEDY)
    assert torch.equal(together[:, batch["input_ids"].shape[1] :], torch.stack(alone))
    assert len({tuple(ids.tolist()) for ids in alone}) == 4


@pytest.fixture
def prefilled(parts):
    """The cache of everything up to the video's last token."""
    model, processor = parts
    cache = DynamicCache(config=model.config.text_config)
    ids = prompt(processor, "?")[:, : prefix_length(processor)]
    with torch.no_grad():
        model(input_ids=ids, pixel_values_videos=[video()], **{CACHE: cache}, use_cache=True)
    return cache


@pytest.mark.parametrize("given", ["the rest", "the whole prompt"])
def test_a_prefilled_cache_is_gone_on_from(parts, prefilled, given):
    model, processor = parts
    whole = prompt(processor, "Who scored?")
    expected = model.generate(input_ids=whole, pixel_values_videos=[video()], **GREEDY)[0, whole.shape[1] :]
    ids = whole[:, prefix_length(processor) :] if given == "the rest" else whole
    mask = torch.ones_like(whole)
    answer = model.generate(input_ids=ids, attention_mask=mask, **{CACHE: prefilled}, **GREEDY)
    assert torch.equal(answer[0, ids.shape[1] :], expected)


def test_the_rest_without_a_mask_over_the_cache_is_refused(parts, prefilled):
    model, processor = parts
    rest = prompt(processor, "Who?")[:, prefix_length(processor) :]
    with pytest.raises(BimbaError, match=rf"4 input_ids .* a cache of {prefix_length(processor)} positions.*mask"):
        model.generate(input_ids=rest, **{CACHE: prefilled}, **GREEDY)


class Say(LogitsProcessor):
    """Makes every generated token the same one."""

    def __init__(self, token_id: int):
        self.token_id = token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        said = torch.full_like(scores, -torch.inf)
        said[:, self.token_id] = 0.0
        return said


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_generated_placeholder_is_a_token_like_any_other(parts, use_cache):
    """The original's vocabulary has padded rows, which a model can write; ours may be such a row."""
    model, processor = parts
    placeholder = processor.video_token_id
    ids = prompt(processor, "Who?")
    inputs = {"input_ids": ids, "pixel_values_videos": [video()]}
    options = {**GREEDY, "logits_processor": LogitsProcessorList([Say(placeholder)])}
    options |= {"return_dict_in_generate": True, "output_logits": True, "use_cache": use_cache}
    output = model.generate(**inputs, **options)
    assert output.sequences[0, ids.shape[1] :].tolist() == [placeholder] * 6

    with torch.no_grad():
        cache = model(**inputs, use_cache=True)[CACHE]
        embedding = model.get_input_embeddings()(torch.tensor([[placeholder]]))
        expected = model(inputs_embeds=embedding, **{CACHE: cache}).logits
    torch.testing.assert_close(output.logits[1], expected[:, -1], rtol=1e-5, atol=1e-5)


def test_embeddings_without_a_cache_are_read_in_every_step(parts):
    model, processor = parts
    ids = prompt(processor, "Who?")
    embeddings = model.embed_prompt(ids, [video()])
    expected = model.generate(input_ids=ids, pixel_values_videos=[video()], **GREEDY)[:, ids.shape[1] :]
    assert torch.equal(model.generate(inputs_embeds=embeddings, **GREEDY, use_cache=False), expected)


# -- registration ------------------------------------------------------------------------------------------------

IMPORTS = {
    "bimba first": "import bimba, transformers",
    "transformers first": "import transformers, bimba",
    "auto classes first": "from transformers import AutoModel, AutoConfig, AutoProcessor; import bimba",
    "AutoModel before AutoConfig": "import bimba; from transformers import AutoModel",
    "AutoProcessor before AutoConfig": "import bimba; from transformers import AutoProcessor",
    "a model that imports auto classes": "import bimba; from transformers import LlavaForConditionalGeneration",
    "what models are made of": "import bimba, transformers.modeling_utils",
    "pipelines": "import bimba; from transformers import pipeline",
    "the harness": "import bimba, lmms_eval.models",
    "a name of bimba": "from bimba import BimbaForConditionalGeneration",
}


@pytest.mark.parametrize("order", IMPORTS)
def test_importing_bimba_registers_it(folder, order):
    code = f"""
{IMPORTS[order]}
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
print(type(AutoConfig.from_pretrained({str(folder)!r})).__name__)
print(type(AutoModel.from_pretrained({str(folder)!r})).__name__)
print(type(AutoModelForImageTextToText.from_pretrained({str(folder)!r})).__name__)
print(type(AutoProcessor.from_pretrained({str(folder)!r})).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["BimbaConfig", *["BimbaForConditionalGeneration"] * 2, "BimbaProcessor"]


def test_importing_bimba_after_transformers_alone_loads_no_model_code():
    code = "import transformers, sys; before = set(sys.modules); import bimba; print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(done.stdout) < 5, done.stderr
