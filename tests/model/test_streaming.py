"""The compressor a piece at a time: the same numbers and gradients, in memory that does not grow with the video."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bimba.model.compressor import MambaCompressor
from bimba.model.compressor import mamba as compressor_module
from bimba.types import BimbaError

HIDDEN = 16


def make(seed: int = 0, **options: Any) -> MambaCompressor:
    torch.manual_seed(seed)
    compressor = MambaCompressor(HIDDEN, d_state=4, **options)
    with torch.no_grad():
        for parameter in compressor.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return compressor


def run(compressor: MambaCompressor, frames: int = 5) -> dict[str, Tensor]:
    """The refined queries of 5 x 9 tokens and 10 queries: 55 positions; and every gradient."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, frames, 3, 3, HIDDEN, generator=generator).requires_grad_()
    queries = torch.randn(2, frames, 2, HIDDEN, generator=generator).requires_grad_()
    compressor.zero_grad()
    y = compressor(tokens, queries)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
    grads = {name: p.grad for name, p in compressor.named_parameters()}
    return {"y": y.detach(), "tokens": tokens.grad, "queries": queries.grad} | grads


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 7, 11, 54, 55, 1000])
@pytest.mark.parametrize("scan_backend", ["auto", "chunked", "reference"])
def test_streamed_equals_whole(chunk_tokens: int, scan_backend: str) -> None:
    options = {"scan_backend": scan_backend}
    expected = run(make(chunk_tokens=0, **options))
    got = run(make(chunk_tokens=chunk_tokens, **options))
    for name, want in expected.items():
        error = (got[name] - want).abs().max() / want.abs().max()
        assert error <= 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    "options",
    [
        {"bidirectional": False},
        {"num_layers": 2},
        {"query_position": "appended"},
        {"residual": False, "norm": False},
        {"d_conv": 1},
        {"d_conv": 6},
    ],
    ids=str,
)
def test_streamed_equals_whole_whatever_the_options(options: dict[str, Any]) -> None:
    expected = run(make(chunk_tokens=0, **options))
    for chunk_tokens in (2, 8):
        got = run(make(chunk_tokens=chunk_tokens, **options))
        for name, want in expected.items():
            error = (got[name] - want).abs().max() / want.abs().max()
            assert error <= 1e-5, f"{name}: {error:.1e}"


class _Largest(TorchDispatchMode):
    """The largest tensor that is made, in elements; views of ``inputs`` are none."""

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.largest = 0
        self.given = [x.untyped_storage().data_ptr() for x in inputs]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.given:
                self.largest = max(self.largest, x.numel())
        return out


@pytest.mark.parametrize("frames", [8, 32])
def test_nothing_but_tokens_and_queries_grows_with_the_video(frames: int) -> None:
    compressor = make(chunk_tokens=64)
    tokens, queries = torch.randn(1, frames, 9, 9, HIDDEN), torch.randn(1, frames, 2, HIDDEN)
    with torch.no_grad(), _Largest(tokens, queries) as sizes:
        compressor(tokens, queries)
    assert sizes.largest <= 2 * 64 * 2 * HIDDEN  # one piece of inner channels, with room


@pytest.mark.parametrize("gradients", [True, False])
def test_long_sequences_are_streamed_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, gradients: bool) -> None:
    monkeypatch.setattr(compressor_module, "STREAM_ABOVE", 50 if gradients else 1000)
    monkeypatch.setattr(compressor_module, "STREAM_INFERENCE_ABOVE", 1 if gradients else 50)
    seen = []
    monkeypatch.setattr("bimba.model.block.stream", lambda *given: seen.append(given) or given[4])
    for chunk_tokens in ("auto", 0):
        compressor = make(chunk_tokens=chunk_tokens)
        for frames in (4, 5):  # 44 and 55 positions
            with torch.set_grad_enabled(gradients):
                compressor(torch.randn(1, frames, 3, 3, HIDDEN), torch.randn(1, frames, 2, HIDDEN))
    assert [given[-1] for given in seen] == [[(45, 10)]]  # once: 55 positions, auto, in one piece of up to 4,096


def test_wrong_sizes_of_a_piece_are_explained() -> None:
    for wrong in (-1, 2.5, "all"):
        with pytest.raises(BimbaError, match=f'chunk_tokens must be "auto", 0 or more, received {wrong!r}'):
            MambaCompressor(HIDDEN, chunk_tokens=wrong)
    with pytest.raises(BimbaError, match="attention sees all tokens at once"):
        MambaCompressor(HIDDEN, mixer="attention", chunk_tokens=8)
