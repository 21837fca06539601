"""The adapter over mamba_ssm's kernels. They need a GPU, so a function with their interface stands in for them here.

What is tested is ours: flips, padding, scattering of queries, the order of gradients, and what is said without them.
"""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from test_selective_scan import assert_same, make_inputs, run
from torch import Tensor

from bimba.ops import selective_scan
from bimba.ops.backend import Backend
from bimba.ops.selective_scan import REGISTRY, mamba_ssm, reference
from bimba.ops.selective_scan.inputs import Scan
from bimba.types import BimbaError


class StandIn:
    """mamba_ssm's SelectiveScanFn on any device, strict about what its kernels are strict about."""

    lengths: list[int]

    @classmethod
    def forward(cls, context: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        u, delta, A, B, C, D, z, bias, softplus, return_last_state = inputs
        assert return_last_state
        assert z is None
        assert u.dtype == delta.dtype == B.dtype == C.dtype
        assert all(x is None or x.dtype == torch.float32 for x in (A, D, bias))
        assert all(x.stride(-1) == 1 for x in (u, delta, B, C))
        assert u.shape[2] % mamba_ssm._MULTIPLE == 0
        cls.lengths.append(u.shape[2])
        context.save_for_backward(u, delta, A, B, C, D, bias)
        context.delta_softplus = softplus
        y, last, _ = reference.forward(cls._scan(context), save=False)
        return y[0].mT.to(delta.dtype), last[0]

    @classmethod
    def backward(cls, context: Any, dout: Tensor) -> tuple[Any, ...]:
        scan = cls._scan(context)
        assert dout.dtype == scan.u.dtype
        assert dout.stride(-1) == 1
        none = torch.zeros(1, scan.u.shape[1], *scan.A.shape[1:])
        grads = reference.backward(scan, none, dout.mT[None].float(), none)
        du, ddelta, dA, dB, dC, dD, dbias, _ = (None if grad is None else grad[0] for grad in grads)
        return du.mT, ddelta.mT, dA, dB.mT, dC.mT, dD, None, dbias, None, None, None

    @staticmethod
    def _scan(context: Any) -> Scan:
        u, delta, A, B, C, D, bias = (None if x is None else x[None] for x in context.saved_tensors)
        return Scan(u.mT, delta.mT, A, B.mT, C.mT, D, bias, None, None, context.delta_softplus, reverse=False)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    backend = Backend(mamba_ssm.forward, mamba_ssm.backward, priority=-1)  # without the demand for a GPU
    monkeypatch.setitem(REGISTRY.backends, "mamba_ssm", backend)
    monkeypatch.setattr(mamba_ssm, "_package", lambda: StandIn)
    monkeypatch.setattr(mamba_ssm, "_MULTIPLE", 8)
    monkeypatch.setattr(StandIn, "lengths", [], raising=False)
    return StandIn


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("absent", [(), ("D", "delta_bias")])
@pytest.mark.parametrize("positions", [None, [0, 3, 12]])
def test_equals_the_reference(
    stand_in: type[StandIn], reverse: bool, absent: tuple[str, ...], positions: list[int] | None
) -> None:
    inputs = make_inputs((2, 3, 4, 13), None if positions is None else len(positions), dtype=torch.float32)
    inputs = {name: x for name, x in inputs.items() if name not in absent}
    index = None if positions is None else torch.tensor(positions)
    options = {"delta_softplus": True, "reverse": reverse, "query_index": index}
    expected = run({name: x.double() for name, x in inputs.items()}, backend="reference", **options)
    assert_same(run(inputs, backend="mamba_ssm", **options), expected, 1e-5)
    assert set(stand_in.lengths) == {16}  # 13, filled up to a multiple of 8


def test_bfloat16_and_the_last_state(stand_in: type[StandIn]) -> None:
    inputs = make_inputs((2, 3, 4, 13), dtype=torch.float32)
    half = {name: x if name in ("A", "D", "delta_bias") else x.bfloat16() for name, x in inputs.items()}
    y, last = selective_scan(**half, backend="mamba_ssm", return_last_state=True)
    exact = {name: x.double() for name, x in half.items()}
    expected, expected_last = selective_scan(**exact, backend="reference", return_last_state=True)
    assert y.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(last.double(), expected_last, rtol=1e-5, atol=1e-5)


def test_a_gradient_of_the_last_state_is_refused(stand_in: type[StandIn]) -> None:
    inputs = {name: x.requires_grad_() for name, x in make_inputs((1, 2, 3, 4), dtype=torch.float32).items()}
    _, last = selective_scan(**inputs, backend="mamba_ssm", return_last_state=True)
    with pytest.raises(BimbaError, match="no gradient of the last state"):
        last.sum().backward()


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(BimbaError, match="'mamba_ssm' was asked for but cannot run: it needs an NVIDIA GPU"):
        selective_scan(**make_inputs((1, 2, 3, 4)), backend="mamba_ssm")


INSTALL = 'pip install --no-build-isolation "mamba-ssm>=2.3.1"'
REBUILD = 'pip install --no-build-isolation --force-reinstall --no-deps --no-cache-dir "mamba-ssm>=2.3.1"'


def module_that_raises(error: Exception) -> ModuleType:
    class Raises(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise error

    return Raises("mamba_ssm.ops.selective_scan_interface")


@pytest.mark.parametrize(
    ("error", "message", "remedy"),
    [
        (
            OSError("undefined symbol: _ZN3c105ErrorC2E"),
            r"cannot be loaded beside torch .*undefined symbol: _ZN3c10",
            REBUILD,
        ),
        (RuntimeError("built for CUDA 12"), "built for CUDA 12", REBUILD),
        (ImportError("libcudart.so.12: cannot open shared object file"), "libcudart", REBUILD),
        (
            ModuleNotFoundError("No module named 'selective_scan_cuda'"),
            "not installed .*No module named 'selective_scan",
            INSTALL,
        ),
    ],
)
def test_a_package_that_does_not_load_is_explained(
    error: Exception, message: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        package = ModuleType(name)
        package.__path__ = []  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", module_that_raises(error))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    mamba_ssm._package.cache_clear()
    try:
        reason = mamba_ssm.BACKEND.unavailable()
    finally:
        mamba_ssm._package.cache_clear()
    assert reason is not None
    assert re.search(message, reason)
    assert reason.endswith(f" with: pip install torch wheel ninja && {remedy}")


def test_what_it_refuses() -> None:
    inputs = {name: x[None].float() for name, x in make_inputs((1, 2, 3, 4)).items()}
    rows = [inputs[name].mT for name in ("u", "delta", "B", "C")]
    call = Scan(*rows[:2], inputs["A"], *rows[2:], None, None, None, None, delta_softplus=True, reverse=False)
    assert "inputs are on cpu" in str(mamba_ssm.BACKEND.refuses(call))
