"""What this machine can run: versions, devices, and which backend each op picks and why."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bimba.versions import wrong_version

if TYPE_CHECKING:
    from bimba.ops.backend import Registry

REQUIRED = ("torch", "transformers", "lightning", "peft", "hydra-core", "lmms-eval", "filelock", "decord", "av")
OPTIONAL = {  # package -> what it is for, and how it comes
    "triton": "fused scan on NVIDIA GPUs; comes with torch on Linux",
    "mamba-ssm": "CUDA scan kernels; see 'Install' in docs/quickstart.md",
    "causal-conv1d": "the original's CUDA convolution, for benchmarks/compressor.py --gpu",
    "torchcodec": "reads videos that decord would get wrong, as PyAV does; pip install 'bimba[torchcodec]'",
    "wandb": "experiment tracking; pip install -e . brings it",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``ok`` is False only where something that is needed is missing."""

    what: str
    state: str
    ok: bool = True


def examine() -> list[Finding]:
    """Everything that ``bimba doctor`` prints; imports torch."""
    findings = [Finding("python", f"{sys.version.split()[0]} on {platform.platform()}")]
    findings += [_package(name, None) for name in REQUIRED]
    findings += [_package(name, purpose) for name, purpose in OPTIONAL.items()]
    if all(finding.ok for finding in findings):  # without torch there is nothing more to find out
        findings += [*_devices(), *_backends(), *_videos()]
    return findings


def _package(name: str, purpose: str | None) -> Finding:
    try:
        if wrong := wrong_version(name):
            return Finding(name, wrong, ok=False)
        return Finding(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        if purpose is None:
            return Finding(name, "missing: pip install bimba brings it", ok=False)
        return Finding(name, f"not installed ({purpose})")


def _devices() -> list[Finding]:
    import torch

    findings = [Finding("cpu", f"{torch.get_num_threads()} threads")]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        memory_gib = properties.total_memory / 1024**3
        findings.append(Finding(f"cuda:{i}", f"{properties.name}, {memory_gib:.0f} GiB"))
    if not torch.cuda.is_available():
        findings.append(Finding("cuda", "none: everything runs on the CPU"))
    return findings


def _backends() -> list[Finding]:
    """Best first, as ``auto`` asks them; the first that is ready is taken unless it refuses the inputs of a call.

    Where an environment variable names one, that one is taken or nothing.
    """
    from bimba.ops.causal_conv1d import REGISTRY as CONVOLUTION
    from bimba.ops.selective_scan import REGISTRY as SCAN

    return [*_backends_of("selective_scan", SCAN), *_backends_of("causal_conv1d", CONVOLUTION)]


def _videos() -> list[Finding]:
    """Those that can read a video, in the order in which ``auto`` asks them."""
    from bimba.data.video import BACKENDS, backend_module

    return [Finding(f"video: {name}", backend_module(name).unavailable() or "ready") for name in BACKENDS]


def _backends_of(op: str, registry: Registry) -> list[Finding]:
    states = {name: backend.unavailable() for name, backend in registry.backends.items()}
    named = registry.preferred()
    chosen, why = named, f"chosen by {registry.variable}"
    if named == "auto":
        chosen, why = next(name for name, reason in states.items() if reason is None), "first choice"
    findings = []
    for name, reason in states.items():
        if name == named and reason is not None:
            findings.append(Finding(f"{op}: {name}", f"{why}, but {reason}; or unset {registry.variable}", ok=False))
        else:
            findings.append(Finding(f"{op}: {name}", reason or (f"ready, {why}" if name == chosen else "ready")))
    if chosen not in states:
        known = ", ".join(["auto", *states])
        remedy = f"no backend is called so; set {registry.variable} to one of: {known}"
        findings.append(Finding(f"{op}: {chosen}", f"{why}, but {remedy}", ok=False))
    return findings
