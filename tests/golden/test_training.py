"""Four optimizer steps of the original's own training script, replayed from its videos through ours.

The original's run began at ``train_init_and_inputs.safetensors``. Everything else is ours: frames, pixels, prompts and
labels of the recipe ``original``, the model that ``build_model`` makes of the base, adapters, optimizer, Lightning.
"""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from bimba.checkpoint.keymap import PEFT_PREFIX, to_ours
from bimba.data.collate import collate
from bimba.data.dataset import VideoQADataset
from bimba.data.recipe import RECIPES
from bimba.training import BimbaModule, ModelSettings, build_model, set_trainable
from bimba.training.optim import OptimizerSettings
from bimba.training.trainable import part_of

GOLDEN = Path(__file__).parent
LORA = GOLDEN / "model" / "lora"
BASE = GOLDEN / "model" / "ckpt_56_base_nocompressor"
FRAMES = 3
LOSS, NORM, GRADIENT, WEIGHT = 1e-4, 1e-4, 2e-5, 2e-4

# With gradient checkpointing, the original runs torch's reentrant one.
CHECKPOINTING = {"nogc": False, "gc": "reentrant"}


@cache
def trace(name: str) -> dict[str, Any]:
    return json.loads((LORA / f"train_trace_{name}.json").read_text())


def ours(name: str) -> str:
    found = to_ours(name.removeprefix(PEFT_PREFIX))
    assert found is not None, name
    return found


def tensors(prefix: str) -> dict[str, torch.Tensor]:
    """By our names."""
    found = load_file(LORA / "train_init_and_inputs.safetensors")
    return {ours(name.removeprefix(prefix)): value for name, value in found.items() if name.startswith(prefix)}


def module_at_the_start(gradient_checkpointing: bool | str) -> BimbaModule:
    settings = ModelSettings(
        base=str(BASE),
        tokenizer=str(BASE),
        dtype="float32",
        gradient_checkpointing=gradient_checkpointing,
        config={"num_frames": FRAMES},
        compressor={"name": "mamba"},
        tuning="lora",
        lora={"r": 8, "alpha": 2, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"], "vision_tower": True},
    )
    model, processor = build_model(settings, settings.base)
    set_trainable(model, settings.tuning, settings.lora)
    with torch.no_grad():
        for name, value in tensors("init.").items():
            model.get_parameter(name).copy_(value)
    optimizer = OptimizerSettings(lr=1e-2, vision_tower_lr=5e-3)
    return BimbaModule(model, processor, optimizer, loss_mean=RECIPES["original"].loss_mean)


class Replay(L.LightningDataModule):
    """The original's samples in the order in which it drew them."""

    def __init__(self, module: BimbaModule, folder: Path):
        super().__init__()
        rows = trace("nogc")["data"]
        (folder / "rows.json").write_text(json.dumps(rows))
        videos = GOLDEN / "text" / "videos"
        self.dataset = VideoQADataset(folder / "rows.json", videos, module.processor, FRAMES, 1000, RECIPES["original"])
        self.names = [row["id"] for row in rows]
        self.pad = module.processor.tokenizer.pad_token_id

    def train_dataloader(self) -> DataLoader[Any]:
        order = [self.names.index(name) for name in trace("nogc")["item_order"]]
        return DataLoader(self.dataset, batch_size=1, sampler=order, collate_fn=partial(collate, pad_token_id=self.pad))


class Recorder(L.Callback):
    """What the trace of the original holds."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.rates: list[dict[str, float]] = []
        self.gradients: list[dict[str, torch.Tensor | None]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(trainer.callback_metrics["train/loss"].item())
        if len(self.losses) % trainer.accumulate_grad_batches == 0:
            self.norms.append(trainer.callback_metrics["train/grad_norm"].item())

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        trained = {n: p for n, p in module.model.named_parameters() if p.requires_grad}
        self.gradients.append({n: None if p.grad is None else p.grad.clone() for n, p in trained.items()})
        names = {id(p): n for n, p in trained.items()}
        self.rates.append({names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]})


@cache
def replay(name: str) -> tuple[BimbaModule, Recorder]:
    """The finished run, and what was seen on the way."""
    import tempfile

    module, recorder = module_at_the_start(CHECKPOINTING[name]), Recorder()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            accumulate_grad_batches=2,
            gradient_clip_val=1.0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[recorder],
        )
        trainer.fit(module, datamodule=Replay(module, Path(folder)))
    return module, recorder


def test_samples(tmp_path):
    """The samples that are trained on are the original's: ids, labels, pixels."""
    module = module_at_the_start(False)
    data = Replay(module, tmp_path)
    video = module.processor.video_token_id
    tokens_per_video = module.processor.num_video_tokens(FRAMES)
    pixels = load_file(LORA / "train_init_and_inputs.safetensors")
    for index, name in enumerate(data.names):
        golden, sample = trace("nogc")["items"][name], data.dataset[index]
        place = golden["input_ids"].index(-200)
        assert sample["labels"][place : place + tokens_per_video].unique().tolist() == [-100]
        for key, medium in (("input_ids", video), ("labels", -100)):
            kept = [*golden[key][:place], *[medium] * tokens_per_video, *golden[key][place + 1 :]]
            assert sample[key].tolist() == kept
        expected = (pixels[f"pixel_u8.{name}"] * (1 / 255) - 0.5) / 0.5
        torch.testing.assert_close(sample["pixel_values_videos"][0], expected, rtol=0, atol=1e-6)


def test_what_is_trained():
    module, _ = replay("nogc")
    trained = {name for name, parameter in module.model.named_parameters() if parameter.requires_grad}
    assert trained == {ours(name) for name in trace("nogc")["trainable"]}


@pytest.mark.parametrize("name", CHECKPOINTING)
def test_losses(name):
    _, recorder = replay(name)
    assert recorder.losses == pytest.approx(trace(name)["micro_loss"], rel=0, abs=LOSS)


@pytest.mark.parametrize("name", CHECKPOINTING)
def test_gradient_norms(name):
    _, recorder = replay(name)
    golden = [row["grad_norm"] for row in trace(name)["log_history"] if "grad_norm" in row]
    assert recorder.norms == pytest.approx(golden, rel=0, abs=NORM)


@pytest.mark.parametrize("name", CHECKPOINTING)
def test_rates(name):
    _, recorder = replay(name)
    groups = trace(name)["optimizer"]["groups"]
    assert len(recorder.rates) == len(trace(name)["lr_used"]) == 4
    for rates, golden in zip(recorder.rates, trace(name)["lr_used"]):
        assert rates == {ours(n): lr for group, lr in zip(groups, golden) for n in group["names"]}


@pytest.mark.parametrize("name", CHECKPOINTING)
def test_first_gradients(name):
    _, recorder = replay(name)
    first = recorder.gradients[0]
    assert {n for n, gradient in first.items() if gradient is None} == {
        ours(n) for n in trace(name)["no_grad_at_first_step"]
    }
    zero = {n for n, gradient in first.items() if gradient is not None and not gradient.any()}
    assert zero == {ours(n) for n in trace(name)["zero_grad_at_first_step"]}
    for n, golden in tensors("grad_step1_accumulated_preclip.").items():
        if first[n] is not None:
            torch.testing.assert_close(first[n], golden, rtol=0, atol=GRADIENT * golden.abs().max().item(), msg=n)


@pytest.mark.parametrize("name", CHECKPOINTING)
def test_final_weights_by_their_statistics(name):
    module, _ = replay(name)
    for theirs, golden in trace(name)["final_param_stats"].items():
        weight = module.model.get_parameter(ours(theirs)).detach().double()
        assert weight.flatten()[:3].tolist() == pytest.approx(golden["first3"], rel=0, abs=WEIGHT), theirs
        assert weight.norm().item() == pytest.approx(golden["l2"], rel=0, abs=WEIGHT), theirs
        for key, value in (("sum", weight.sum()), ("abs_sum", weight.abs().sum())):
            assert value.item() == pytest.approx(golden[key], rel=0, abs=10 * WEIGHT), theirs


def test_final_weights_are_those_of_the_folder_the_original_wrote():
    module, _ = replay("nogc")
    written = LORA / "bimba-lora-qwen-ckpt"
    golden = {
        **torch.load(written / "non_lora_trainables.bin", weights_only=True),
        **{
            name.replace(".weight", ".default.weight"): value
            for name, value in torch.load(written / "adapter_model.bin", weights_only=True).items()
        },
    }
    assert len(golden) == 37
    for name, value in golden.items():
        torch.testing.assert_close(
            module.model.get_parameter(ours(name)).detach(), value, rtol=0, atol=WEIGHT, msg=name
        )


def test_adapters_of_the_vision_tower_stay_where_they_were_under_reentrant_checkpointing_only():
    for name in CHECKPOINTING:
        module, _ = replay(name)
        adapters = {n: p for n, p in module.model.named_parameters() if part_of(n) == "vision_lora" and "lora_B" in n}
        largest = max(p.abs().max().item() for p in adapters.values())
        assert largest == pytest.approx(trace(name)["vision_lora_B_max_abs_after_training"], abs=WEIGHT)


def test_our_gradient_checkpointing_trains_them(tmp_path):
    """The default kind gives the gradients that no checkpointing gives."""

    def gradients(gradient_checkpointing):
        module = module_at_the_start(gradient_checkpointing)
        module(next(iter(Replay(module, tmp_path).train_dataloader()))).losses.mean().backward()
        return {name: p.grad for name, p in module.model.named_parameters() if p.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=1e-6, msg=name)
    assert all(plain[name].any() for name in plain if part_of(name) == "vision_lora" and "lora_B" in name)
