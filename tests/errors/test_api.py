"""The names that a program imports: each error is a BimbaError with a message for the user."""

from __future__ import annotations

import pytest
import torch

from bimba.types import BimbaError
from tests.errors.case import check_said


def _scan(**changes):
    from bimba.ops import selective_scan

    inputs = {
        "u": torch.zeros(1, 4, 8),
        "delta": torch.zeros(1, 4, 8),
        "A": torch.zeros(4, 2),
        "B": torch.zeros(1, 2, 8),
        "C": torch.zeros(1, 2, 8),
    }
    return selective_scan(**{**inputs, **changes})


def _compressor(**options):
    from bimba.model.compressor import MambaCompressor

    return MambaCompressor(8, **options)


def _compress(tokens, queries):
    return _compressor(d_state=2)(tokens, queries)


def _build(**config):
    from bimba.model.compressor import build_compressor

    return build_compressor(config, hidden_size=8)


def _load(name, **options):
    from bimba.checkpoint import load_pretrained

    return load_pretrained(name, **options)


def _engine():
    from bimba import VideoQA

    return VideoQA.from_pretrained("good", device="cpu")


CASES = {
    "sizes": (lambda: _scan(delta=torch.zeros(1, 4, 9)), ["delta must have shape (1, 4, 8), received (1, 4, 9)"]),
    "integers": (lambda: _scan(B=torch.zeros(1, 2, 8, dtype=torch.int64)), ["B must be a real floating-point tensor"]),
    "axes": (lambda: _scan(u=torch.zeros(4, 8)), ["u must be (B, D, L), received shape (4, 8)"]),
    "a_backend": (lambda: _scan(backend="cuda"), ["no backend is called 'cuda'", "choose one of: auto"]),
    "queries_out_of_order": (
        lambda: _scan(query_index=torch.tensor([3, 1]), C=torch.zeros(1, 2, 2)),
        ["query_index must be strictly increasing; sort it and drop repeats"],
    ),
    "channels": (
        lambda: _compress(torch.zeros(1, 2, 4, 4, 16), torch.zeros(1, 2, 4, 8)),
        ["expected space-time tokens (B, T, H, W, 8) and queries (B, T', Q', 8)", "received (1, 2, 4, 4, 16)"],
    ),
    "a_position": (
        lambda: _compressor(query_position="middle"),
        ["query_position='middle' is unknown; choose one of: interleaved, appended"],
    ),
    "no_layers": (lambda: _compressor(num_layers=0), ["num_layers must be a whole number of at least 1, received 0"]),
    "a_compressor": (lambda: _build(name="mambo"), ["'mambo' is no compressor; choose one of: attention"]),
    "an_option": (lambda: _build(name="mamba", d_sate=4), ["has no option d_sate; its options are: num_layers"]),
    "a_dtype": (lambda: _load("good", dtype="int8"), ["Unknown dtype 'int8'; expected float32, bfloat16 or float16"]),
    "a_folder": (lambda: _load("nowhere"), ["There is no checkpoint folder nowhere", "bimba-tiny"]),
    "pooling": (lambda: _load("good", temporal_pooling=0), ["temporal_pooling is 0; expected 1 or more frames"]),
    "a_video": (lambda: _engine().encode("nowhere.mp4"), ["nowhere.mp4: No such file", "Check the path"]),
    "frames": (lambda: _engine().encode("clip.mp4", num_frames=0), ["num_frames is 0; expected 1 or more"]),
    "short_videos": (
        lambda: _engine().encode("clip.mp4", short_videos="skip"),
        ["short_videos is 'skip'; expected one of error, repeat"],
    ),
    "options": (
        lambda: _engine().encode("clip.mp4").choose("Who?", ["me"]),
        ["Got 1 options; a multiple-choice question takes 2 to 26"],
    ),
    "question": (lambda: _engine().encode("clip.mp4").ask(""), ["The question is empty; give the text of a question"]),
}


@pytest.mark.parametrize("name", CASES)
def test_it_says_what_is_wrong(name):
    call, says = CASES[name]
    with pytest.raises(BimbaError) as caught:
        call()
    check_said(str(caught.value), says)
