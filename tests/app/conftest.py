"""Checkpoints with and without a scan, videos that differ, and the page served by this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import tiny_model, write_video

from bimba.app.models import Models, Settings
from bimba.checkpoint import save_pretrained
from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.config import BimbaConfig

MAX_UPLOAD_MB = 200


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    """A folder with ``scan`` (a compressor that scans), ``conditioned`` (which reads the question too), ``none``."""
    folder = tmp_path_factory.mktemp("checkpoints")
    plain, processor = tiny_model(1)
    save_pretrained(plain, processor, folder / "none")
    start, end = processor.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    of_questions = {"question_conditioned": True, "num_layers": 2}
    for name, compressor in (("scan", {}), ("conditioned", of_questions)):
        config = {
            **plain.config.to_dict(),
            "compressor": {"name": "mamba", "d_state": 4, **compressor},
            "turn_start_token_id": start,
            "turn_end_token_id": end,
        }
        torch.manual_seed(2)
        model = BimbaForConditionalGeneration(BimbaConfig.from_dict(config)).eval()
        model.load_state_dict(plain.state_dict(), strict=False)
        for layer in model.compressor.layers:
            torch.nn.init.normal_(layer.mixer.out_proj.weight)
        save_pretrained(model, processor, folder / name)
    return folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """A folder with ``a.mp4`` and ``b.mp4``, which differ, and ``short.mp4`` of two frames."""
    folder = tmp_path_factory.mktemp("videos")
    for name, seed in (("a", 1), ("b", 2)):
        write_video(folder / f"{name}.mp4", num_frames=24, seed=seed)
    write_video(folder / "short.mp4", num_frames=2)
    return folder


@pytest.fixture
def models_of(checkpoints: Path):
    """Names of checkpoints -> ``Models``."""
    made: list[Models] = []

    def make(*names: str, **settings: object) -> Models:
        every = {"max_new_tokens": 8, "queries": 4, "device": "cpu", **settings}
        made.append(Models(Settings([(str(checkpoints / name), None) for name in names], **every)))
        return made[-1]

    yield make
    for models in made:
        models.end()


@dataclass
class Served:
    """A page: its address, where its uploads lie, and the models behind it."""

    address: str
    uploads: Path
    models: Models

    def uploaded(self) -> list[str]:
        return sorted(path.name for path in self.uploads.rglob("*") if path.is_file())


@contextmanager
def served(models: Models, uploads: Path, max_upload_mb: int = MAX_UPLOAD_MB) -> Iterator[Served]:
    """The page, until the block ends."""
    import uvicorn

    from bimba.app.server import make_app

    with pytest.MonkeyPatch.context() as patch, socket.socket() as listener:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        listener.bind(("127.0.0.1", 0))
        app = make_app(models, uploads, max_upload_mb * 2**20, keep_s=600)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", uploads, models)
        finally:
            server.should_exit = True
            thread.join(30)
