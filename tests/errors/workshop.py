"""A folder of everything that can be broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import tiny_model, write_video

from bimba.checkpoint import save_pretrained
from bimba.model.compressor import build_compressor

ROOT = Path(__file__).parents[2]
ADAPTER = ROOT / "tests/golden/model/lora/bimba-lora-qwen-ckpt"  # of the original; its base is named, and not here
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
WEIGHT = "language_model.model.layers.0.self_attn.q_proj.weight"


def build(folder: Path) -> None:
    videos(folder)
    checkpoints(folder)
    annotations(folder)
    (folder / "folder").mkdir()
    (folder / "folder/notes.txt").write_text("mine")
    (folder / "file").write_text("mine")
    shutil.copytree(ADAPTER, folder / "adapter")


def videos(folder: Path) -> None:
    whole = write_video(folder / "clip.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video\n" * 50)
    (folder / "page.mp4").write_text("<!DOCTYPE html><title>404</title>")
    (folder / "pointer.mp4").write_text(POINTER)
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "codec.mp4").write_bytes(whole.replace(b"avc1", b"zzzz"))
    write_video(folder / "short.mp4", num_frames=3)
    with av.open(str(folder / "no_frames.mkv"), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        file.start_encoding()
    with av.open(str(folder / "sound.mp4"), "w") as file:
        sound = file.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        file.mux([*sound.encode(frame), *sound.encode()])


def checkpoints(folder: Path) -> None:
    model, processor = tiny_model()
    save_pretrained(model, processor, folder / "good")
    model.config.compressor = {"name": "mamba", "d_state": 4}
    model.compressor = build_compressor(model.config.compressor, model.config.text_config.hidden_size)
    save_pretrained(model, processor, folder / "scanning")

    _changed(folder, "lacks_a_tensor", tensors=lambda found: found.pop(WEIGHT))
    _changed(folder, "has_one_more", tensors=lambda found: found.update({"head.extra": torch.zeros(2)}))
    _changed(folder, "other_size", tensors=lambda found: found.update({WEIGHT: torch.zeros(2, 2)}))
    _changed(folder, "wrong_value", config=lambda found: found["text_config"].update(hidden_size="big"))
    _changed(folder, "wrong_compressor", config=lambda found: found.update(compressor={"name": "mambo"}))
    _changed(folder, "other_model", config=lambda found: found.update(model_type="llama"))
    for name, file, content in (
        ("corrupt", "model.safetensors", b"\x30" + bytes(7) + b"\xff" * 100),
        ("cut_off", "model.safetensors", (folder / "good/model.safetensors").read_bytes()[:9000]),
        ("weights_pointer", "model.safetensors", POINTER.encode()),
        ("config_pointer", "config.json", POINTER.encode()),
        ("broken_config", "config.json", b'{"model_type": "bimba",,'),
        ("no_tokenizer", "tokenizer.json", None),
        ("no_processor", "processor_config.json", None),
        ("no_weights", "model.safetensors", None),
    ):
        path = _changed(folder, name) / file
        path.unlink() if content is None else path.write_bytes(content)


def _changed(
    folder: Path,
    name: str,
    tensors: Callable[[dict[str, Any]], Any] = lambda found: None,
    config: Callable[[dict[str, Any]], Any] = lambda found: None,
) -> Path:
    """A copy of the good checkpoint with a change."""
    copy = folder / name
    shutil.copytree(folder / "good", copy)
    weights, settings = load_file(copy / "model.safetensors"), json.loads((copy / "config.json").read_text())
    tensors(weights)
    config(settings)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    (copy / "config.json").write_text(json.dumps(settings))
    return copy


def annotations(folder: Path) -> None:
    right = [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "Me."}]
    rows = [
        {"id": "1", "video": "clip.mp4", "conversations": right},
        {"id": "2", "video": "clip.mp4", "conversations": [{"from": "user", "value": "Who?"}]},
        {"id": "3", "video": "gone.mp4", "conversations": right},
        {"id": "4", "video": "text.mp4", "conversations": right},
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "broken.json").write_text("[{not json")
    (folder / "object.json").write_text('{"rows": []}')
    (folder / "key.yaml").write_text("datasets:\n  - json_pth: rows.json\n")
    (folder / "share.yaml").write_text("datasets:\n  - json_path: rows.json\n    sampling_strategy: fist:10%\n")
    (folder / "brackets.yaml").write_text("datasets:\n  - json_path: [rows.json\n")
    (folder / "no_list.yaml").write_text("dataset:\n  - json_path: rows.json\n")
