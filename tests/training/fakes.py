"""A small learnable data set without files, and a module on a random model, for tests of the training loop."""

from __future__ import annotations

import atexit
import csv
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from bimba.data.collate import collate
from bimba.data.tokenize import tokenize_conversation
from bimba.training import BimbaModule, ModelSettings, build_model, set_trainable
from bimba.training.callbacks import BadVideoGuard, SaveCheckpoint
from bimba.training.checkpointing import WholeFiles
from bimba.training.loggers import CsvLogger
from bimba.training.optim import OptimizerSettings
from bimba.types import BadSample

IMAGE_SIZE, NUM_FRAMES = 32, 4
SIZES: dict[str, Any] = {
    "num_frames": NUM_FRAMES,
    "temporal_pooling": 1,
    "newline_position": "grid",
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
    },
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    },
}
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


@cache
def tokenizer_folder() -> str:
    """A tokenizer with one token per byte and Qwen's chat tokens, on disk."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tempfile.mkdtemp(prefix="bimba-test-tokenizer-")
    atexit.register(shutil.rmtree, folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|video_pad|>", "<|image_pad|>"],
    ).save_pretrained(folder)
    return folder


def model_node(**changes: Any) -> dict[str, Any]:
    """The node ``model`` of a model with thirty thousand parameters."""
    return {
        "base": None,
        "tokenizer": tokenizer_folder(),
        "dtype": "float32",
        "gradient_checkpointing": False,
        "compile": False,
        "frozen": [],
        "config": SIZES,
        "compressor": None,
        "tuning": "lora",
        "lora": LORA,
        **changes,
    }


def tiny_model(**changes: Any) -> tuple[Any, Any]:
    """A random model and its processor, the same at every call."""
    torch.manual_seed(0)
    return build_model(ModelSettings.from_node(model_node(**changes)), None)


class FakeVideos:
    """Videos of one colour, and the question which: black is A, white is B.

    Args:
        processor: of the model that is trained.
        bad: indices that cannot be read.
    """

    def __init__(self, processor: Any, length: int, bad: Sequence[int] = ()):
        self.processor, self.length, self.bad = processor, length, set(bad)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any] | BadSample:
        if index in self.bad:
            return BadSample(path=f"{index}.mp4", error=f"{index}.mp4: truncated")
        answer = "AB"[index % 2]
        conversation = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": answer}]
        counts = [self.processor.num_video_tokens(NUM_FRAMES)]
        noise = torch.rand(NUM_FRAMES, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(index))
        pixels = noise * 0.1 + (index % 2)
        return {
            **tokenize_conversation(conversation, self.processor.tokenizer, counts),
            "pixel_values_videos": [pixels],
        }


class FakeData(L.LightningDataModule):
    """``length`` samples in order, every epoch the same; ``bad`` and ``val_bad`` cannot be read."""

    def __init__(
        self, processor: Any, length: int = 8, batch_size: int = 2, bad: Sequence[int] = (), val_bad: Sequence[int] = ()
    ):
        super().__init__()
        self.train_videos = FakeVideos(processor, length, bad)
        self.val_videos = FakeVideos(processor, length, val_bad)
        self.batch_size = batch_size

    def _loader(self, videos: FakeVideos) -> DataLoader[Any]:
        return DataLoader(videos, batch_size=self.batch_size, collate_fn=lambda s: collate(s, pad_token_id=0))  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train_videos)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.val_videos)


def tiny_module(
    tuning: str = "lora", model: dict[str, Any] | None = None, cut_off: Sequence[str] = (), **optimizer: Any
) -> BimbaModule:
    """A module on ``tiny_model``; ``model`` changes the node model, ``optimizer`` the node optimizer."""
    node = model_node(tuning=tuning, **(model or {}))
    torch.manual_seed(0)
    built, processor = build_model(ModelSettings.from_node(node), None)
    set_trainable(built, node["tuning"], node["lora"])
    settings = OptimizerSettings(**{"lr": 1e-3, "warmup_ratio": 0.0, **optimizer})
    return BimbaModule(built, processor, settings, cut_off)


def tiny_trainer(
    run_dir: Path,
    max_steps: int,
    callbacks: Sequence[L.Callback] | None = None,
    resume: Path | None = None,
    max_epochs: int = -1,
    **kwargs: Any,
) -> L.Trainer:
    if callbacks is None:
        callbacks = [BadVideoGuard(run_dir), SaveCheckpoint(run_dir)]
    return L.Trainer(
        max_steps=max_steps,
        max_epochs=max_epochs,
        accelerator="cpu",
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(c, L.pytorch.callbacks.ProgressBar) for c in callbacks),
        enable_checkpointing=any(isinstance(c, L.pytorch.callbacks.Checkpoint) for c in callbacks),
        callbacks=list(callbacks),
        logger=CsvLogger(run_dir, resume),
        plugins=[WholeFiles()],
        **kwargs,
    )


def read_metrics(run_dir: Path) -> dict[str, list[float]]:
    """The columns of metrics.csv, without the empty cells."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows if row[key]] for key in rows[0]}
