"""The road from a video file to an answer, and every scan backend, tried out in seconds; imports torch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from bimba.checkpoint import load_pretrained
from bimba.checkpoint.devices import resolve_device
from bimba.data.isolated import read_frames
from bimba.data.needle_files import encode_mp4
from bimba.data.transform import frames_to_pixels
from bimba.inference.engine import VideoQA
from bimba.ops import selective_scan
from bimba.ops.selective_scan import REGISTRY
from bimba.ops.triton_support import interpreted
from bimba.report.doctor import Finding
from bimba.types import BimbaError

NUM_FRAMES = 8
_TOLERANCE = 1e-4  # of float32 sums in another order, relative to the largest output
_BATCH, _CHANNELS, _STATES, _LENGTH = 1, 32, 16, 512
_LENGTH_INTERPRETED = 72  # over the border of a kernel's block of 64; Triton's interpreter takes 0.1 s a position


class _Broken(Exception):
    """A step failed, so that those after it cannot be tried."""


def self_test(on_step: Callable[[str], None] = lambda step: None) -> list[Finding]:
    """What came of each step; the steps behind one that failed are left out.

    Args:
        on_step: called with what is tried next.
    """
    findings: list[Finding] = []
    with suppress(_Broken):  # what broke is among the findings
        _answer_a_question(findings, on_step)
    for name, backend in REGISTRY.backends.items():
        if name != "reference" and backend.unavailable() is None:
            with suppress(_Broken), _step(f"scan by {name}", findings, on_step) as say:
                say(_compare(name))
    return findings


@contextmanager
def _step(what: str, findings: list[Finding], on_step: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """One finding: what the step says, and how long it took; or how it failed."""
    on_step(what)
    start, said = time.perf_counter(), [""]
    try:
        yield lambda text: said.__setitem__(0, text)
    except Exception as error:  # whatever breaks here is what the doctor is asked for
        findings.append(Finding(f"self test: {what}", f"failed: {type(error).__name__}: {error}", ok=False))
        raise _Broken from error
    findings.append(Finding(f"self test: {what}", f"{said[0]} in {time.perf_counter() - start:.1f} s"))


def _answer_a_question(findings: list[Finding], on_step: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="bimba-doctor-") as folder:
        clip = Path(folder) / "clip.mp4"
        with _step("write a clip", findings, on_step) as say:
            clip.write_bytes(encode_mp4(_moving_stripes(), fps=8))
            say(f"{clip.stat().st_size} bytes of H.264")
        with _step("decode", findings, on_step) as say:
            frames = read_frames(clip, NUM_FRAMES)
            if frames.pixels.shape != (NUM_FRAMES, 96, 96, 3):
                raise BimbaError(f"Received frames of shape {frames.pixels.shape}; expected {NUM_FRAMES} of 96 x 96.")
            say(f"{NUM_FRAMES} frames by {frames.reader}")
    with _step("load", findings, on_step) as say:
        device = resolve_device("auto")
        engine = VideoQA(*load_pretrained("bimba-tiny", compressor={"name": "mamba"}, device=device))
        say(f"bimba-tiny with a scan, on {device}")
    with _step("encode", findings, on_step) as say:
        video = engine.encode_pixels(frames_to_pixels(frames, engine.processor.image_processor))
        if not torch.isfinite(video.tokens).all():
            raise BimbaError("The video's tokens are not all numbers (NaN or infinity).")
        say(f"{len(video.tokens)} tokens")
    with _step("answer", findings, on_step) as say:
        answer = video.generate("Which digit appears in the video?", 8)
        say(f"{answer.new_tokens} tokens")


def _moving_stripes() -> np.ndarray:
    """(T, 96, 96, 3) uint8."""
    t, y, x = np.ogrid[:32, :96, :96]
    grey = (127 + 120 * np.sin((x + y + 3 * t) / 9)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _compare(backend: str) -> str:
    """Outputs and the gradient of the inputs of a backend against the reference's, forwards and backwards.

    Raises:
        BimbaError: they differ, or the backend takes such inputs on no device that is here.
    """
    refusal: BimbaError | None = None
    length = _LENGTH_INTERPRETED if backend == "triton" and interpreted() else _LENGTH
    for device in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",):
        try:
            got = _scan(backend, device, length)
        except BimbaError as error:
            refusal = error
            continue
        expected = _scan("reference", device, length)
        errors = [(a - b).abs().max() / b.abs().max() for a, b in zip(got, expected)]
        worst = float(torch.stack(errors).max())  # NaN if one is, which Python's max would pass over
        if not worst <= _TOLERANCE:
            raise BimbaError(f"It differs from the reference by {worst:.1e} on {device}; expected {_TOLERANCE:.0e}.")
        return f"agrees with the reference to {worst:.0e} on {device},"
    raise refusal or BimbaError("There is no device.")


def _scan(backend: str, device: str, length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(device)

    tensors = []
    query_index = torch.arange(4, length, 5, device=device)
    for reverse in (False, True):
        u = normal(_BATCH, _CHANNELS, length).requires_grad_()
        y = selective_scan(
            u,
            normal(_BATCH, _CHANNELS, length),
            -torch.exp(normal(_CHANNELS, _STATES)),
            normal(_BATCH, _STATES, length),
            normal(_BATCH, _STATES, len(query_index)),
            D=normal(_CHANNELS),
            delta_softplus=True,
            reverse=reverse,
            query_index=query_index,
            backend=backend,
        )
        tensors += [y.detach(), *torch.autograd.grad(y.square().sum(), u)]
    return tensors
