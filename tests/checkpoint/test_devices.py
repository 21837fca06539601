"""Devices and dtypes by name."""

from __future__ import annotations

import pytest
import torch

from bimba.checkpoint.devices import resolve_device, resolve_dtype
from bimba.types import BimbaError


def test_a_device_by_name(monkeypatch):
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta"])
def test_no_such_device(device):
    with pytest.raises(BimbaError, match=rf"'{device}' cannot be used here .*; expected auto, cpu, or one that"):
        resolve_device(device)


def test_a_dtype_by_name():
    assert resolve_dtype("bfloat16") is resolve_dtype(torch.bfloat16) is torch.bfloat16
    assert resolve_dtype(None) is None


@pytest.mark.parametrize("dtype", ["float99", "nn", "int64", torch.int64])
def test_no_such_dtype(dtype):
    with pytest.raises(BimbaError, match=f"Unknown dtype '{dtype}'; expected float32, bfloat16 or float16"):
        resolve_dtype(dtype)
