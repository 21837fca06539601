"""Checkpoints that are none, or not whole, or not here."""

from __future__ import annotations

import httpx
import pytest
from huggingface_hub import errors

from tests.errors.case import Case, check_said
from tests.errors.workshop import WEIGHT

_AGAIN = "Download or copy the checkpoint again"


def _checkpoint(name: str, *says: str, more: tuple[str, ...] = ()) -> Case:
    words = ["ask", "clip.mp4", "Who?", "--checkpoint", name, "--device", "cpu", *more]
    return Case(name.replace("/", "_"), words, [says[0], name, *says[1:]])


CASES = [
    _checkpoint("nowhere", "There is no checkpoint folder", "a training run, a downloaded checkpoint", "bimba-tiny"),
    _checkpoint("clip.mp4", "is a file, no checkpoint", "give the `checkpoint` folder"),
    _checkpoint("folder", "is not a checkpoint: it has no config.json", "notes.txt", "outputs/<run>/checkpoint"),
    _checkpoint("lacks_a_tensor", "do not fit its config.json", f"missing: {WEIGHT}", _AGAIN),
    _checkpoint("has_one_more", "do not fit its config.json", "unexpected: head.extra", _AGAIN),
    _checkpoint("other_size", "do not fit its config.json", f"{WEIGHT} (2, 2) (expected (32, 32))", _AGAIN),
    _checkpoint("corrupt", "model.safetensors cannot be read", _AGAIN),
    _checkpoint("cut_off", "model.safetensors is truncated", "9,000 bytes of at least", _AGAIN),
    _checkpoint("no_weights", "There are no weights", "model.safetensors", _AGAIN),
    _checkpoint("weights_pointer", "is a Git LFS pointer", "model.safetensors", "git lfs pull"),
    _checkpoint("config_pointer", "is a Git LFS pointer", "config.json", "git lfs pull"),
    _checkpoint("broken_config", "is not a JSON object", "config.json", _AGAIN),
    _checkpoint("wrong_value", "makes no model", "'hidden_size' expected int, got str (value: 'big')", _AGAIN),
    _checkpoint("wrong_compressor", "is no compressor", "'mambo'", "choose one of: attention, conv"),
    _checkpoint("other_model", "is of model type 'llama'", "expected 'bimba' (ours) or 'llava_qwen'"),
    _checkpoint("no_tokenizer", "has no tokenizer.json", "it holds: README.md, config.json", _AGAIN),
    _checkpoint("no_processor", "has no processor_config.json", "it holds: README.md, config.json", _AGAIN),
    _checkpoint("adapter", "is an adapter and needs its base", "lmms-lab/LLaVA-Video-7B-Qwen2", "--base <folder>"),
    _checkpoint(
        "adapter", "is an adapter and needs its base", "no checkpoint folder nowhere", more=("--base", "nowhere")
    ),
    _checkpoint("good", "is no adapter", "it takes no base=folder", more=("--base", "folder")),
    _checkpoint("someone/model", "HF_HUB_OFFLINE is set", "hub it cannot be had", "give a local folder"),
    Case(
        "convert_over_files",
        ["convert", "good", "folder"],
        ["folder exists already", "give a new folder, or remove it first"],
    ),
    Case(
        "convert_where_nothing_can_be_written",
        ["convert", "good", "file/new"],
        ["could not be written", "file/new", "is unchanged", "give a folder that can be written to and has room"],
    ),
    Case("convert_to_another_layout", ["convert", "good", "new", "--to", "gguf"], ["invalid choice: 'gguf'"], code=2),
    Case(
        "convert_with_no_frames_a_query",
        ["convert", "good", "new", "--temporal-pooling", "0"],
        ["--temporal-pooling is 0", "expected 1 or more"],
        code=2,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-{len(case.words)}")
def test_it_says_what_is_wrong(case, refused):
    assert refused(case) == ""


def _response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.example/someone/model"))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            errors.RepositoryNotFoundError("404", response=_response(404)),
            ["Check the name, or log in: `hf auth login`"],
        ),
        (errors.GatedRepoError("403", response=_response(403)), ["it is gated", "Ask for access", "HF_TOKEN"]),
        (errors.HfHubHTTPError("503 Server Error", response=_response(503)), ["503 Server Error", "Try again later"]),
        (
            errors.LocalEntryNotFoundError("no way there"),
            ["the hub cannot be reached (no way there)", "a local folder"],
        ),
    ],
    ids=["no_such_model", "gated", "hub_is_ill", "no_network"],
)
def test_what_the_hub_says(error, says, monkeypatch):
    from bimba.checkpoint import load_pretrained
    from bimba.types import BimbaError

    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(BimbaError) as caught:
        load_pretrained("someone/model")
    check_said(str(caught.value), ["There is no checkpoint folder someone/model", *says])
