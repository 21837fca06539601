"""What this machine can run: versions, devices, and which backend each op picks and why."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from dataclasses import dataclass

REQUIRED = ("torch", "transformers", "lightning", "peft", "hydra-core", "lmms-eval", "decord", "av")
OPTIONAL = {  # package -> what it is for, and how it comes
    "triton": "fused scan on NVIDIA GPUs; comes with torch on Linux",
    "mamba-ssm": "CUDA scan kernels; see 'Install' in the README",
    "causal-conv1d": "CUDA convolution kernel; see 'Install' in the README",
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
        findings += [*_devices(), *_backends()]
    return findings


def _package(name: str, purpose: str | None) -> Finding:
    try:
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
    """Best first, as ``auto`` asks them; the first that is ready is taken unless it refuses the inputs of a call."""
    from bimba.ops.causal_conv1d import REGISTRY as CONVOLUTION
    from bimba.ops.selective_scan import REGISTRY as SCAN

    findings = []
    for op, registry in (("selective_scan", SCAN), ("causal_conv1d", CONVOLUTION)):
        states = {name: backend.unavailable() for name, backend in registry.backends.items()}
        ready = [name for name, reason in states.items() if reason is None]
        for name, reason in states.items():
            state = reason or ("ready, first choice" if name == ready[0] else "ready")
            findings.append(Finding(f"{op}: {name}", state))
    return findings
