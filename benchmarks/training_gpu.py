"""A training step at the 7B model's size on a GPU, for ``training.py --gpu``: ours against the original's scan.

    python benchmarks/training.py --gpu           7B sizes, 64 frames, random weights made on the GPU
    python benchmarks/training.py --gpu --tiny    the same code at tiny sizes on the CPU; its figures mean nothing

One model and one batch of noise. What is trained and how is conf/model's: LoRA, projector and compressor in float32,
the rest and the arithmetic in bfloat16, gradient checkpointing. A step is forward, backward and AdamW. The two ways
differ in the compressor alone, see ``original.py``; the buffer made on the host is part of the original's. No speed is
printed if their losses, or gradients of the compressor, differ. MFU: operations of ``bimba.training.flops``, those of
our way for both, per second, as a share of the GPU's peak.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu import measure, original_convolution, original_scan
from hydra import compose, initialize_config_dir
from lightning.fabric.utilities.throughput import get_available_flops
from omegaconf import OmegaConf
from original import OriginalsWay
from torch import Tensor, nn

from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.config import BimbaConfig
from bimba.model.mamba import cast
from bimba.model.queries import query_grid
from bimba.model.splice import num_video_tokens
from bimba.training import ModelSettings, set_trainable
from bimba.training.build import enable_checkpointing
from bimba.training.flops import Work, count_flops
from bimba.training.loss import score

WORDS, LEARNED = 64, 16  # of text around the video, and of these at the end
TOLERANCE = 1e-2  # relative: two bfloat16 computations
GRADIENT_TOLERANCE = 5e-2  # of the norm of the compressor's gradient
TINY_VOCABULARY = 512


class Step:
    """A training step on one batch.

    Args:
        compress: called in the compressor's place; None: the compressor.
    """

    def __init__(self, model: Any, batch: dict[str, Any], optimizer: torch.optim.Optimizer, compress: Any = None):
        self.model, self.batch, self.optimizer = model, batch, optimizer
        self.compress = compress or model.compressor.forward

    def backward(self) -> float:
        """Gradients, and the loss."""
        model, batch = self.model, self.batch
        model.compressor.forward = self.compress
        self.optimizer.zero_grad()
        with torch.autocast(batch["input_ids"].device.type, torch.bfloat16):
            videos = model.encode_videos_in(batch["input_ids"], batch["pixel_values_videos"])
            embedded = model.embed(batch["input_ids"], videos, [])
            states = model.language_model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            loss = score(states, batch["labels"], model.language_model.lm_head).losses.mean()
        loss.backward()
        return loss.item()

    def __call__(self) -> None:
        self.backward()
        self.optimizer.step()


def make_model(tiny: bool, device: str) -> BimbaForConditionalGeneration:
    """Of conf/model's sizes, with random weights; the compressor's, too, which would else pass its queries on."""
    name = "bimba_tiny" if tiny else "bimba_qwen2_7b"
    with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "conf"), version_base="1.3"):
        node = OmegaConf.to_container(compose("train", [f"model={name}"]).model, resolve=True)
    settings = ModelSettings.from_node({**node, "gradient_checkpointing": True, "dtype": "bfloat16"})
    sizes = {key: value for key, value in settings.config.items() if value is not None}
    sizes["text_config"] = {"vocab_size": TINY_VOCABULARY, **sizes["text_config"]}
    last = sizes["text_config"]["vocab_size"] - 1
    config = BimbaConfig(**sizes, compressor=settings.compressor, video_token_id=last, image_token_id=last - 1)
    torch.manual_seed(0)
    with torch.device(device):
        model = BimbaForConditionalGeneration(config)
        nn.init.normal_(model.compressor.layers[0].mixer.out_proj.weight, std=0.02)
        cast(model, torch.bfloat16)
        set_trainable(
            model, "lora", {**settings.lora, "dropout": 0.0}
        )  # two ways with other noise could not be compared
    enable_checkpointing(model, settings)
    return model.train()


def make_batch(config: BimbaConfig, device: str) -> dict[str, Any]:
    groups, side = query_grid(config.num_frames, config.patch_grid, config.reduction)
    length, size = num_video_tokens(groups, side, side, config.newline_position), config.vision_config.image_size
    words = torch.randint(config.image_token_id, (1, WORDS), device=device)
    input_ids = torch.cat([torch.full((1, length), config.video_token_id, device=device), words], dim=1)
    labels = torch.full_like(input_ids, -100)
    labels[:, -LEARNED:] = input_ids[:, -LEARNED:]
    pixels = torch.rand(1, config.num_frames, 3, size, size, device=device, dtype=torch.bfloat16) * 2 - 1
    return {"input_ids": input_ids, "labels": labels, "pixel_values_videos": pixels}


def disagreement(ours: Step, original: Step) -> str | None:
    """How the two ways differ; None: they do not."""
    results = []
    for step in (ours, original):
        loss = step.backward()
        gradients: list[Tensor] = [p.grad.flatten() for p in step.model.compressor.parameters() if p.grad is not None]
        results.append((loss, torch.cat(gradients)))
    (our_loss, our_gradient), (other_loss, other_gradient) = results
    if not math.isclose(our_loss, other_loss, rel_tol=TOLERANCE):
        return f"The losses differ: {our_loss} with our scan, {other_loss} the original's way"
    apart = (our_gradient - other_gradient).norm() / other_gradient.norm()
    if not apart <= GRADIENT_TOLERANCE:
        return f"The gradients of the compressor differ by {apart:.3f} of their norm"
    print(f"losses {our_loss:.4f} and {other_loss:.4f}; gradients of the compressor {apart:.4f} of their norm apart")
    return None


def main(tiny: bool) -> int:
    if not tiny and not torch.cuda.is_available():
        print(
            "--gpu: torch finds no GPU here; add --tiny to run the same code at tiny sizes on the CPU.", file=sys.stderr
        )
        return 1
    device, repeats = ("cpu", 1) if tiny else ("cuda", 5)
    model = make_model(tiny, device)
    batch = make_batch(model.config, device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    original = OriginalsWay(
        model.compressor, original_scan(device)[0], original_convolution(device)[0], host_buffer=True
    )
    frames, length = model.config.num_frames, batch["input_ids"].shape[1]
    name = "cpu, tiny sizes" if tiny else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {name}, {frames} frames, {length} tokens, median of {repeats}")
    print(f"the original's way runs on: {original_scan(device)[1]}, {original_convolution(device)[1]}")
    ours = Step(model, batch, optimizer)
    theirs = Step(model, batch, optimizer, partial(_without_question, original))
    if (difference := disagreement(ours, theirs)) is not None:
        print(f"{difference}: no figures.", file=sys.stderr)
        return 1
    flops = count_flops(model, Work([length], LEARNED, [frames]))
    peak = None if tiny else get_available_flops(torch.device(device), torch.bfloat16)
    print(f"{flops / 1e12:.3g} TFLOP a step; the device's peak: {f'{peak / 1e12:.0f} TFLOP/s' if peak else 'unknown'}")
    for what, step in (("ours", ours), ("original's way", theirs)):
        time_s, peak_gb = measure(step, repeats, device)
        mfu = f"{flops / time_s / peak:6.1%}" if peak else "unknown"
        print(f"{what:<16}{1 / time_s:8.3f} samples/s  MFU {mfu}  peak {'unknown' if tiny else f'{peak_gb:.1f} GB'}")
    return 0


def _without_question(compress: OriginalsWay, tokens: Tensor, queries: Tensor, question: None = None) -> Tensor:
    return compress(tokens, queries).to(queries.dtype)
