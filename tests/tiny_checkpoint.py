"""A random checkpoint of a hundred thousand parameters and real mp4 files, for tests of everything above the model."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SiglipImageProcessor

from bimba.data.prompt import LETTERS
from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.config import BimbaConfig
from bimba.model.processor import BimbaProcessor

IMAGE_SIZE, PATCH_SIZE, NUM_FRAMES, MAX_LENGTH = 32, 8, 4, 512
QUESTIONS_PER_TASK = 4


def ascii_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, and Qwen's chat tokens: other tokens are another text."""
    alphabet = [*(chr(code) for code in range(33, 127)), "Ġ", "Ċ"]  # the last two are the space and the line feed
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|video_pad|>", "<|image_pad|>"],
    )


def tiny_model(seed: int = 0) -> tuple[BimbaForConditionalGeneration, BimbaProcessor]:
    """A random model in evaluation mode; weights are large enough that its answers depend on the video."""
    torch.manual_seed(seed)
    tokenizer = ascii_tokenizer()
    config = BimbaConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": MAX_LENGTH,
        },
        num_frames=NUM_FRAMES,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    )
    model = BimbaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20)
    processor = BimbaProcessor(
        SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer,
        patch_grid=config.patch_grid,
        num_frames=NUM_FRAMES,
    )
    return model, processor


def conditioned_model() -> tuple[BimbaForConditionalGeneration, BimbaProcessor]:
    """The model of :func:`tiny_model` with a compressor that reads the question and changes its queries by it."""
    plain, processor = tiny_model()
    start, end = processor.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    changes = {
        "compressor": {"name": "mamba", "d_state": 4, "question_conditioned": True},
        "turn_start_token_id": start,
        "turn_end_token_id": end,
    }
    torch.manual_seed(1)
    model = BimbaForConditionalGeneration(BimbaConfig.from_dict({**plain.config.to_dict(), **changes})).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    torch.nn.init.normal_(model.compressor.layers[0].mixer.out_proj.weight)
    return model, processor


def write_video(path: Path, num_frames: int = 12, seed: int = 0) -> Path:
    """A short H.264 film of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = np.random.default_rng(seed).integers(0, 256, (num_frames, 48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_needles(root: Path) -> Path:
    """A needle test split: two videos, ``QUESTIONS_PER_TASK`` questions per task, videos alternating."""
    folder = root / "test"
    for name in ("a", "b"):
        write_video(folder / "videos" / f"{name}.mp4", seed=ord(name))
    samples = [
        {
            "id": f"{task}-{i}",
            "video": f"videos/{'ab'[i % 2]}.mp4",
            "conversations": [],
            "data_source": "needle",
            "task": task,
            "question": f"Question {i} about {task}?",
            "options": ["1", "2", "3", "4"],
            "answer": LETTERS[i % 4],
            "answer_text": str(i % 4 + 1),
        }
        for task in ("retrieval", "ordering", "counting")
        for i in range(QUESTIONS_PER_TASK)
    ]
    (folder / "annotations.json").write_text(json.dumps(samples))
    return root
